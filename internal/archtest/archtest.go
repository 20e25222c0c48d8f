// Package archtest holds the floors of the house: which package may import which. Its test fails the build on an
// import that goes up or sideways, on a package that stands on no floor, and on a top level that grew.
package archtest

// Floors lists every package by floor, lowest first. A package imports only packages of lower floors, never a
// neighbour: neighbours meet through a small interface that the consumer declares and internal/app wires.
// Packages for tests stand beside the floors: see Helpers.
var Floors = [][]string{
	{"internal/mail", "internal/kv"},
	{
		"internal/resolver", "internal/dsn", "internal/account", "internal/event", "internal/api", "internal/sevenbit",
		"internal/checklist",
	},
	{"spool", "dkim", "internal/mailauth", "internal/suppression", "internal/tlspolicy", "internal/contact"},
	{"internal/intake", "internal/bounce", "internal/source"},
	{"smtpd", "delivery", "campaign"},
	{"admin"},
	{"internal/config"},
	{"internal/app"},
	{"internal/demo"},
	{"cmd/relayd", "cmd/relayctl"},
}

// Helpers may be imported by tests everywhere, and by the packages named, which serve a real DNS zone or inbox in the
// demo. They import floors as they need, as long as no cycle comes of it.
var Helpers = map[string][]string{
	"internal/kv/kvtest":             {},
	"internal/resolver/resolvertest": {"internal/demo"},
	"internal/testutil":              {},
	"internal/archtest":              {},
	"e2e":                            {},
}

// TopLevel is what may stand in the root folder of the repository, besides files whose name begins with a dot.
var TopLevel = []string{
	"go.mod", "go.sum", "cmd", "smtpd", "spool", "delivery", "dkim", "campaign", "admin", "config.example.toml",
	"testdata", "internal", "docs", "e2e", "tools", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md",
	"LICENSE", "SECURITY.md",
}

// OnlyUsers names the packages that alone may import a library, in code that is not a test: what is behind one door
// can be changed behind one door.
var OnlyUsers = map[string][]string{
	"go.etcd.io/bbolt":               {"internal/kv"},
	"github.com/miekg/dns":           {"internal/resolver", "internal/resolver/resolvertest"},
	"github.com/spf13/cobra":         {"cmd/relayd", "cmd/relayctl"},
	"github.com/emersion/go-smtp":    {"cmd/relayctl", "internal/demo", "internal/testutil"},
	"net/textproto":                  {"admin"}, // part headers of multipart forms; never to read mail with
	"math/rand":                      {},
	"blitiri.com.ar/go/spf":          {"internal/mailauth"},
	"github.com/pelletier/go-toml":   {"internal/config", "cmd/relayctl"},
	"github.com/jackc/pgx":           {"internal/source"},
	"github.com/go-sql-driver/mysql": {"internal/source"},
	"database/sql":                   {"internal/source", "internal/testutil"},
}
