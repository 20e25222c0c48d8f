package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Problem is one thing wrong with a configuration.
type Problem struct {
	Line int    // 0 where no line of the file is to blame
	Key  string // full key, such as "smtp.listener[0].tls"; "" for syntax errors
	Msg  string
}

// Problems is every error of one configuration, in the order of its lines.
type Problems struct {
	File string
	List []Problem
}

// Error prints one problem a line: FILE:LINE: KEY: MESSAGE.
func (p *Problems) Error() string {
	lines := make([]string, 0, len(p.List))
	for _, e := range p.List {
		s := p.File
		if e.Line > 0 {
			s += ":" + strconv.Itoa(e.Line)
		}
		if e.Key != "" {
			s += ": " + e.Key
		}
		lines = append(lines, s+": "+e.Msg)
	}
	return strings.Join(lines, "\n")
}

// decoder sets the fields of a struct from parsed TOML and collects every error on its way.
type decoder struct {
	lines    map[string]int // full key → line
	problems []Problem
}

func (d *decoder) fail(key, format string, args ...any) {
	d.problems = append(d.problems, Problem{Line: d.line(key), Key: key, Msg: fmt.Sprintf(format, args...)})
}

// line finds the line of key or of the nearest table that holds it.
func (d *decoder) line(key string) int {
	for key != "" {
		if n, ok := d.lines[key]; ok {
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return 0
}

// decode parses text into v, a pointer to a struct that holds the defaults.
func (d *decoder) decode(text []byte, v any) {
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		p := Problem{Msg: err.Error()}
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			p.Line, _ = de.Position()
			p.Msg = strings.TrimPrefix(de.Error(), "toml: ")
		}
		d.problems = append(d.problems, p)
		return
	}
	d.lines = positions(text)
	d.table("", tree, reflect.ValueOf(v).Elem())
}

// positions tells for every key of the text on which line it stands.
func positions(text []byte) map[string]int {
	lines := map[string]int{}
	arrays := map[string]int{} // array table → index of its last element
	prefix := ""
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		e := p.Expression()
		key, line := "", 0
		for it := e.Key(); it.Next(); {
			if line == 0 {
				line = p.Shape(it.Node().Raw).Start.Line
			}
			key = join(key, string(it.Node().Data))
			if n, ok := arrays[key]; ok && e.Kind != unstable.KeyValue {
				if e.Kind == unstable.Table || !it.IsLast() {
					key += "[" + strconv.Itoa(n) + "]"
				}
			}
		}
		switch e.Kind {
		case unstable.Table:
			prefix = key
			lines[key] = line
		case unstable.ArrayTable:
			n, ok := arrays[key]
			if ok {
				n++
			}
			arrays[key] = n
			prefix = key + "[" + strconv.Itoa(n) + "]"
			lines[prefix] = line
			if _, ok := lines[key]; !ok {
				lines[key] = line
			}
		case unstable.KeyValue:
			lines[join(prefix, key)] = line
		}
	}
	return lines
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}

// fields lists the settable fields of a struct by their key, those of embedded structs included.
func fields(v reflect.Value) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			maps.Copy(out, fields(v.Field(i)))
			continue
		}
		tag, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		if tag == "" || tag == "-" {
			continue
		}
		out[tag] = v.Field(i)
	}
	return out
}

func (d *decoder) table(prefix string, tree map[string]any, v reflect.Value) {
	known := fields(v)
	for _, key := range sortedKeys(tree) {
		full := join(prefix, key)
		f, ok := known[key]
		if !ok {
			if near := nearest(key, sortedKeys(known)); near != "" {
				d.fail(full, "unknown key; did you mean %q?", near)
			} else {
				d.fail(full, "unknown key; known here: %s", strings.Join(sortedKeys(known), ", "))
			}
			continue
		}
		d.value(full, tree[key], f)
	}
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	textType     = reflect.TypeFor[encoding.TextUnmarshaler]()
)

func (d *decoder) value(key string, in any, v reflect.Value) {
	if v.Type() == durationType {
		s, ok := in.(string)
		dur, err := time.ParseDuration(s)
		if !ok || err != nil {
			d.fail(key, "want a duration such as \"15m\" or \"1h30m\", got %s", show(in))
			return
		}
		v.SetInt(int64(dur))
		return
	}
	if reflect.PointerTo(v.Type()).Implements(textType) {
		s, ok := in.(string)
		if !ok {
			d.fail(key, "want a string, got %s", show(in))
		} else if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			d.fail(key, "%v", err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if m, ok := in.(map[string]any); ok {
			d.table(key, m, v)
			return
		}
		d.fail(key, "want a table, got %s", show(in))
	case reflect.Map:
		d.mapping(key, in, v)
	case reflect.Slice:
		d.list(key, in, v)
	case reflect.String:
		if s, ok := in.(string); ok {
			v.SetString(s)
			return
		}
		d.fail(key, "want a string, got %s", show(in))
	case reflect.Bool:
		if b, ok := in.(bool); ok {
			v.SetBool(b)
			return
		}
		d.fail(key, "want true or false, got %s", show(in))
	case reflect.Float64:
		switch n := in.(type) {
		case float64:
			v.SetFloat(n)
		case int64:
			v.SetFloat(float64(n))
		default:
			d.fail(key, "want a number, got %s", show(in))
		}
	case reflect.Int, reflect.Int64, reflect.Uint16:
		d.integer(key, in, v)
	default:
		d.fail(key, "cannot be set from a file (%s)", v.Type())
	}
}

// integer takes a whole number, and for keys that end in _bytes also a size such as "25MiB".
func (d *decoder) integer(key string, in any, v reflect.Value) {
	n, ok := in.(int64)
	if s, isText := in.(string); isText && strings.HasSuffix(key, "_bytes") {
		size, err := ParseSize(s)
		if err != nil {
			d.fail(key, "%v", err)
			return
		}
		n, ok = size, true
	}
	switch {
	case !ok && strings.HasSuffix(key, "_bytes"):
		d.fail(key, "want a size such as 1048576 or \"25MiB\", got %s", show(in))
	case !ok:
		d.fail(key, "want a whole number, got %s", show(in))
	case v.Kind() == reflect.Uint16 && (n < 0 || n > 65535):
		d.fail(key, "want 0 to 65535, got %d", n)
	case v.Kind() == reflect.Uint16:
		v.SetUint(uint64(n))
	default:
		v.SetInt(n)
	}
}

func (d *decoder) list(key string, in any, v reflect.Value) {
	items, ok := in.([]any)
	if !ok {
		d.fail(key, "want a list, got %s", show(in))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(items), len(items))
	for i, item := range items {
		d.value(key+"["+strconv.Itoa(i)+"]", item, out.Index(i))
	}
	v.Set(out)
}

func (d *decoder) mapping(key string, in any, v reflect.Value) {
	m, ok := in.(map[string]any)
	if !ok {
		d.fail(key, "want a table, got %s", show(in))
		return
	}
	out := reflect.MakeMap(v.Type())
	for _, name := range sortedKeys(m) {
		item := reflect.New(v.Type().Elem()).Elem()
		d.value(join(key, name), m[name], item)
		out.SetMapIndex(reflect.ValueOf(name), item)
	}
	v.Set(out)
}

func show(v any) string {
	switch x := v.(type) {
	case string:
		return strconv.Quote(x)
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	default:
		return fmt.Sprint(x)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// ParseSize reads "1048576", "512KB", "25MiB" or "1GiB". KB, MB and GB are powers of 1,000.
func ParseSize(s string) (int64, error) {
	t := strings.TrimSpace(s)
	i := strings.IndexFunc(t, func(r rune) bool { return r < '0' || r > '9' })
	if i < 0 {
		i = len(t)
	}
	n, err := strconv.ParseInt(t[:i], 10, 64)
	units := map[string]int64{
		"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
	}
	unit, ok := units[strings.ToLower(strings.TrimSpace(t[i:]))]
	if err != nil || !ok || n > (1<<62)/unit {
		return 0, fmt.Errorf("want a size such as \"512KiB\" or \"25MiB\", got %q", s)
	}
	return n * unit, nil
}

// nearest returns the known word that needs the fewest edits, if it is close enough to be a slip.
func nearest(word string, known []string) string {
	best, bestAt := "", len(word)/2+1
	for _, k := range known {
		if n := edits(word, k); n < bestAt {
			best, bestAt = k, n
		}
	}
	return best
}

// edits is the Levenshtein distance.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diag := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diag
			if a[i-1] != b[j-1] {
				cost++
			}
			diag, row[j] = row[j], min(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

// parseScalar gives the text of an environment variable the type that a file would have given it.
func parseScalar(s string, v reflect.Value) any {
	switch v.Kind() {
	case reflect.Bool:
		if b, err := strconv.ParseBool(s); err == nil {
			return b
		}
	case reflect.Int, reflect.Int64, reflect.Uint16:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil && v.Type() != durationType {
			return n
		}
	case reflect.Float64:
		if n, err := strconv.ParseFloat(s, 64); err == nil {
			return n
		}
	}
	return s
}

// sortByLine keeps the order of problems on one line.
func sortByLine(p []Problem) {
	sort.SliceStable(p, func(i, j int) bool { return p[i].Line < p[j].Line })
}
