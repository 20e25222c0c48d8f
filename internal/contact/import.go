package contact

type activeImports struct{}
