package mailauth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"relayd/internal/resolver"
)

// suite is one document of the official test cases of RFC 7208.
type suite struct {
	Description string                      `yaml:"description"`
	Tests       map[string]suiteTest        `yaml:"tests"`
	Zone        map[string][]map[string]any `yaml:"zonedata"`
}

type suiteTest struct {
	Helo     string `yaml:"helo"`
	Host     string `yaml:"host"`
	MailFrom string `yaml:"mailfrom"`
	Result   any    `yaml:"result"`
}

// TestF5OfficialSPFCases runs the test suite of RFC 7208, which comes with the source of the SPF library: every case, with
// the verdict that the suite asks for.
func TestF5OfficialSPFCases(t *testing.T) {
	t.Parallel()
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "blitiri.com.ar/go/spf").Output()
	require.NoError(t, err)
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(dir)), "testdata", "rfc7208-tests.yml"))
	require.NoError(t, err)
	defer f.Close()
	ran := 0
	for d := yaml.NewDecoder(f); ; {
		var s suite
		if err := d.Decode(&s); errors.Is(err, io.EOF) {
			break
		} else {
			require.NoError(t, err)
		}
		r := newZone(t, s.Zone)
		for name, c := range s.Tests {
			res := CheckSPF(t.Context(), r, netip.MustParseAddr(c.Host), c.Helo, c.MailFrom)
			ran++
			want := allowed(c.Result)
			if !slices.Contains(want, res.Result) {
				t.Errorf("%s, %s: got %s, want %v: %+v", s.Description, name, res.Result, want, res)
			}
			require.NotEmpty(t, res.Explanation)
		}
	}
	require.GreaterOrEqual(t, ran, 203)
}

func allowed(v any) []Result {
	switch v := v.(type) {
	case string:
		return []Result{Result(v)}
	case []any:
		var all []Result
		for _, one := range v {
			all = append(all, Result(fmt.Sprint(one)))
		}
		return all
	}
	return nil
}

// zone answers from the records of a suite.
type zone struct {
	records map[string]map[string][]any // by name and type
}

func newZone(t *testing.T, data map[string][]map[string]any) *zone {
	z := &zone{map[string]map[string][]any{}}
	for name, list := range data {
		types := map[string][]any{}
		for _, rec := range list {
			for typ, v := range rec {
				types[typ] = append(types[typ], v)
			}
		}
		// What is published as type SPF only is published as TXT as well (header of the suite).
		if len(types["TXT"]) == 0 {
			types["TXT"] = types["SPF"]
		}
		types["TXT"] = slices.DeleteFunc(slices.Clone(types["TXT"]), func(v any) bool { return v == "NONE" })
		z.records[strings.ToLower(name)] = types
	}
	require.NotEmpty(t, z.records)
	return z
}

func (z *zone) get(name, typ string) ([]any, error) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	label := func(l string) bool { return l == "" || len(l) > 63 }
	if len(name) > 253 || slices.ContainsFunc(strings.Split(name, "."), label) {
		return nil, resolver.ErrNXDomain
	}
	for range 5 {
		types, ok := z.records[name]
		if !ok {
			return nil, resolver.ErrNXDomain
		}
		if len(types[typ]) > 0 {
			return types[typ], nil
		}
		if len(types["TIMEOUT"])+len(types["SERVFAIL"])+len(types["CNAMELOOP"]) > 0 {
			return nil, resolver.ErrTemporary
		}
		if len(types["CNAME"]) == 0 {
			return nil, resolver.ErrNoData
		}
		name = strings.ToLower(fmt.Sprint(types["CNAME"][0]))
	}
	return nil, resolver.ErrTemporary
}

func (z *zone) LookupTXT(_ context.Context, name string) ([]string, error) {
	list, err := z.get(name, "TXT")
	var out []string
	for _, v := range list {
		if parts, ok := v.([]any); ok { // one record of several strings
			joined := ""
			for _, p := range parts {
				joined += fmt.Sprint(p)
			}
			v = joined
		}
		out = append(out, fmt.Sprint(v))
	}
	return out, err
}

func (z *zone) LookupMXRecords(_ context.Context, name string) ([]resolver.MX, error) {
	list, err := z.get(name, "MX")
	var out []resolver.MX
	for _, v := range list {
		pair := v.([]any)
		out = append(out, resolver.MX{Host: strings.ToLower(pair[1].(string)), Pref: uint16(pair[0].(int))})
	}
	return out, err
}

func (z *zone) LookupIP(_ context.Context, host string) ([]netip.Addr, error) {
	var out []netip.Addr
	var last error
	for _, typ := range []string{"A", "AAAA"} {
		list, err := z.get(host, typ)
		last = err
		for _, v := range list {
			for s := range strings.SplitSeq(strings.Trim(fmt.Sprint(v), "[]"), " ") {
				out = append(out, netip.MustParseAddr(s))
			}
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	return nil, last
}

func (z *zone) LookupPTR(_ context.Context, ip netip.Addr) ([]string, error) {
	var name string
	if b := ip.AsSlice(); ip.Is4() {
		name = fmt.Sprintf("%d.%d.%d.%d.in-addr.arpa", b[3], b[2], b[1], b[0])
	} else {
		for _, octet := range slices.Backward(b) {
			name += fmt.Sprintf("%x.%x.", octet&15, octet>>4)
		}
		name += "ip6.arpa"
	}
	list, err := z.get(name, "PTR")
	var out []string
	for _, v := range list {
		out = append(out, fmt.Sprint(v))
	}
	return out, err
}
