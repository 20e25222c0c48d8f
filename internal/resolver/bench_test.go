package resolver_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/resolver"
	"relayd/internal/resolver/resolvertest"
)

// BenchmarkLookup asks for what is cached, as delivery does for every further message to a domain, and for what is not.
func BenchmarkLookup(b *testing.B) {
	s, err := resolvertest.NewServer(map[string][]string{"a.example": {"@ MX 10 a", "@ MX 10 b", "a A 127.0.0.1", "a AAAA ::1"}})
	require.NoError(b, err)
	defer s.Close()
	r, err := resolver.New(resolver.Config{Servers: []string{s.Addr}}, resolver.Deps{})
	require.NoError(b, err)
	b.Run("mx_cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.LookupMX(b.Context(), "a.example"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("ip_cached", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.LookupIP(b.Context(), "a.a.example"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("mx_asked", func(b *testing.B) {
		for b.Loop() {
			r, err := resolver.New(resolver.Config{Servers: []string{s.Addr}}, resolver.Deps{})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := r.LookupMX(b.Context(), "a.example"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
