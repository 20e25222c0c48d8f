package account

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
	"relayd/internal/kv/kvtest"
)

func openDB(t testing.TB, path string) kv.DB {
	t.Helper()
	db, err := kv.OpenBolt(path, kv.BoltOptions{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return kvtest.Twice(db)
}

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.Context(), openDB(t, filepath.Join(t.TempDir(), "db")), func() time.Time {
		return time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)
	})
	require.NoError(t, err)
	return s
}

func TestDomains(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	require.NoError(t, s.AddDomain(t.Context(), Domain{Name: "Example.COM."}))
	d, ok := s.Domain("example.com")
	require.True(t, ok)
	require.Equal(t, Domain{Name: "example.com", Account: "default", Sign: "required", CreatedAt: s.now()}, d)

	require.ErrorIs(t, s.AddDomain(t.Context(), Domain{Name: "example.com", Account: "other"}), ErrExists, "one owner in all")
	for _, bad := range []Domain{
		{Name: "exa mple.com"},
		{Name: ""},
		{Name: "[192.0.2.1]"},
		{Name: "a.com", Sign: "maybe"},
		{Name: "a.com", Account: "Upper"},
		{Name: "a.com", Account: "a/b"},
		{Name: "a.com", Account: strings.Repeat("a", 33)},
	} {
		require.ErrorIs(t, s.AddDomain(t.Context(), bad), ErrInvalid, "%+v", bad)
	}
	require.NoError(t, s.AddDomain(t.Context(), Domain{Name: "예.kr", Account: "shop", Sign: "none"}))
	require.Len(t, s.Domains(""), 2)
	require.Len(t, s.Domains("shop"), 1)
	require.Equal(t, "xn--2j5b.kr", s.Domains("shop")[0].Name)

	require.NoError(t, s.RemoveDomain(t.Context(), "example.com"))
	require.ErrorIs(t, s.RemoveDomain(t.Context(), "example.com"), ErrNotFound)
}

func TestConfiguredDomainsWinAndCannotBeEdited(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	require.NoError(t, s.AddDomain(t.Context(), Domain{Name: "a.example", Account: "shop"}))
	s.SetConfigured([]Domain{{Name: "a.example"}, {Name: "b.example", Sign: "none"}})
	d, _ := s.Domain("a.example")
	require.Equal(t, Domain{Name: "a.example", Account: "default", Sign: "required", Configured: true}, d)
	require.Len(t, s.Domains(""), 2, "the stored one is hidden")
	require.Empty(t, s.Domains("shop"))
	require.ErrorIs(t, s.RemoveDomain(t.Context(), "b.example"), ErrConfigured)
	require.ErrorIs(t, s.AddDomain(t.Context(), Domain{Name: "b.example"}), ErrExists)
	s.SetConfigured(nil)
	d, _ = s.Domain("a.example")
	require.Equal(t, "shop", d.Account)
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	require.NoError(t, s.AddDomain(t.Context(), Domain{Name: "example.com"}))
	require.NoError(t, s.AddDomain(t.Context(), Domain{Name: "shop.example", Account: "shop"}))
	c, password, err := s.CreateCredential(t.Context(), "default", []string{"EXAMPLE.com"})
	require.NoError(t, err)
	require.Equal(t, []string{"example.com"}, c.Domains)
	require.Len(t, password, 52, "256 bits in base32")

	got, err := s.Authenticate(t.Context(), c.Username, password)
	require.NoError(t, err)
	require.Equal(t, c, got)
	for name, try := range map[string][2]string{
		"wrong_password": {c.Username, password[:51] + "!"}, "empty_password": {c.Username, ""},
		"unknown_name": {"nobody", password}, "no_name": {"", ""}, "upper_case": {strings.ToUpper(c.Username), password},
		"long_password": {c.Username, password + strings.Repeat("x", 1<<20)},
	} {
		_, err := s.Authenticate(t.Context(), try[0], try[1])
		require.Equal(t, ErrBadCredentials, err, name)
	}
	_, _, err = s.CreateCredential(t.Context(), "default", []string{"shop.example"})
	require.ErrorIs(t, err, ErrUnknownDomain, "another account's domain")
	require.ErrorContains(t, err, "relayctl domain add shop.example")
	_, _, err = s.CreateCredential(t.Context(), "a b", nil)
	require.ErrorIs(t, err, ErrInvalid)

	require.NoError(t, s.RevokeCredential(t.Context(), c.Username))
	_, err = s.Authenticate(t.Context(), c.Username, password)
	require.ErrorIs(t, err, ErrBadCredentials, "at once")
	require.ErrorIs(t, s.RevokeCredential(t.Context(), c.Username), ErrNotFound)
}

func TestKeys(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	k, token, err := s.CreateKey(t.Context(), "", "deploy", []string{"queue:read", "events:read", "queue:read"})
	require.NoError(t, err)
	require.Equal(t, []string{"events:read", "queue:read"}, k.Scopes)
	require.Regexp(t, `^rk_live_[0-9a-z]{26}_[0-9a-z]{52}$`, token)
	got, err := s.CheckKey(t.Context(), token)
	require.NoError(t, err)
	require.Equal(t, k, got)
	for _, bad := range []string{
		"", "rk_live_", "rk_live__", token[:len(token)-1], token + "0", strings.Replace(token, "live", "test", 1),
		strings.TrimPrefix(token, "rk_live_"), "key_" + token, strings.ToUpper(token), token + strings.Repeat("0", 1<<20),
	} {
		_, err := s.CheckKey(t.Context(), bad)
		require.Equal(t, ErrBadCredentials, err, "%.80q", bad)
	}
	for name, scopes := range map[string][]string{"none": nil, "unknown": {"queue:eat"}, "empty": {""}} {
		_, _, err := s.CreateKey(t.Context(), "", "", scopes)
		require.ErrorIs(t, err, ErrInvalid, name)
	}
	_, _, err = s.CreateKey(t.Context(), "", "two\nlines", []string{"all"})
	require.ErrorIs(t, err, ErrInvalid)

	require.NoError(t, s.RevokeKey(t.Context(), k.ID))
	_, err = s.CheckKey(t.Context(), token)
	require.ErrorIs(t, err, ErrBadCredentials, "at once")
	require.ErrorIs(t, s.RevokeKey(t.Context(), k.ID), ErrNotFound)
}

func TestScopeAllIsNotAdmin(t *testing.T) {
	t.Parallel()
	all, admin, one := Key{Scopes: []string{"all"}}, Key{Scopes: []string{"admin"}}, Key{Scopes: []string{"queue:read"}}
	for _, scope := range Scopes() {
		require.Equal(t, scope != ScopeAdmin, all.Allows(scope), scope)
		require.True(t, admin.Allows(scope), scope)
		require.Equal(t, scope == "queue:read", one.Allows(scope), scope)
	}
}

func TestEverythingSurvivesReopening(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db := openDB(t, path)
	s, err := Open(t.Context(), db, nil)
	require.NoError(t, err)
	require.NoError(t, s.AddDomain(t.Context(), Domain{Name: "example.com"}))
	c, password, err := s.CreateCredential(t.Context(), "", nil)
	require.NoError(t, err)
	gone, gonePassword, err := s.CreateCredential(t.Context(), "", nil)
	require.NoError(t, err)
	require.NoError(t, s.RevokeCredential(t.Context(), gone.Username))
	k, token, err := s.CreateKey(t.Context(), "", "", []string{"all"})
	require.NoError(t, err)
	require.NoError(t, db.Close())

	s, err = Open(t.Context(), openDB(t, path), nil)
	require.NoError(t, err)
	_, ok := s.Domain("example.com")
	require.True(t, ok)
	got, err := s.Authenticate(t.Context(), c.Username, password)
	require.NoError(t, err)
	require.Equal(t, c, got)
	_, err = s.Authenticate(t.Context(), gone.Username, gonePassword)
	require.ErrorIs(t, err, ErrBadCredentials)
	key, err := s.CheckKey(t.Context(), token)
	require.NoError(t, err)
	require.Equal(t, k, key)
}

func TestSecretsAreNotStored(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	c, password, err := s.CreateCredential(t.Context(), "", nil)
	require.NoError(t, err)
	_, token, err := s.CreateKey(t.Context(), "", "", []string{"all"})
	require.NoError(t, err)
	secret := token[strings.LastIndexByte(token, '_')+1:]
	records := 0
	require.NoError(t, s.db.View(t.Context(), func(tx kv.Tx) error {
		for _, table := range []kv.Table{credentialTable, keyTable} {
			if err := tx.Scan(table, nil, nil, func(_, value []byte) (bool, error) {
				records++
				require.NotContains(t, string(value), password)
				require.NotContains(t, string(value), secret)
				return true, nil
			}); err != nil {
				return err
			}
		}
		return nil
	}))
	require.Equal(t, 2, records)
	require.NotContains(t, fmt.Sprintf("%+v", c), password)
}

func TestUnknownRecordVersionIsAnError(t *testing.T) {
	t.Parallel()
	db := openDB(t, filepath.Join(t.TempDir(), "db"))
	require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) error { return tx.Put(keyTable, []byte("key_x"), []byte{9}) }))
	_, err := Open(t.Context(), db, nil)
	require.ErrorContains(t, err, "unknown record version")
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	s := openStore(t)
	var wg sync.WaitGroup
	added := make(chan error, 8)
	for range 8 {
		wg.Go(func() {
			added <- s.AddDomain(context.Background(), Domain{Name: "example.com"})
			c, password, err := s.CreateCredential(context.Background(), "", nil)
			if err == nil {
				_, err = s.Authenticate(context.Background(), c.Username, password)
			}
			if err == nil {
				err = s.RevokeCredential(context.Background(), c.Username)
			}
			s.Domains("")
			s.SetConfigured(nil)
			_, _ = s.Credentials(context.Background(), "")
			if err != nil {
				panic(err)
			}
		})
	}
	wg.Wait()
	close(added)
	good := 0
	for err := range added {
		if err == nil {
			good++
		} else {
			require.ErrorIs(t, err, ErrExists)
		}
	}
	require.Equal(t, 1, good)
}

func BenchmarkAuthenticate(b *testing.B) {
	s := openStore(b)
	c, password, err := s.CreateCredential(b.Context(), "", nil)
	require.NoError(b, err)
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = s.Authenticate(b.Context(), c.Username, password)
		}
	})
	b.Run("unknown", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = s.Authenticate(b.Context(), "nobody", password)
		}
	})
}
