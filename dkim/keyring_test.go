package dkim

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func open(t *testing.T, dir string) *Keyring {
	t.Helper()
	k, err := OpenAt(dir, func() time.Time { return at })
	require.NoError(t, err)
	return k
}

func selectors(keys []*Key) string {
	var all []string
	for _, k := range keys {
		all = append(all, k.Selector)
	}
	return strings.Join(all, " ")
}

func TestLifeOfAKey(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dkim")
	k := open(t, dir)
	require.Empty(t, k.Keys("shop.example"))
	_, err := k.Rotate("shop.example")
	require.ErrorIs(t, err, ErrNoKey)

	first, err := k.AddDomain("Shop.Example.")
	require.NoError(t, err)
	require.Equal(t, "r20261 e20261", selectors(first))
	require.Equal(t, []Algorithm{RSA2048, Ed25519}, []Algorithm{first[0].Algorithm, first[1].Algorithm})
	again, err := k.AddDomain("shop.example")
	require.NoError(t, err)
	require.Equal(t, first, again, "adding twice makes no more keys")

	next, err := k.Rotate("shop.example")
	require.NoError(t, err)
	require.Equal(t, "r20262 e20262", selectors(next))
	require.Equal(t, "r20261 e20261", selectors(k.Keys("shop.example")), "pending keys do not sign")
	again, err = k.Rotate("shop.example")
	require.NoError(t, err)
	require.Equal(t, next, again)

	require.NoError(t, k.Activate("shop.example", "r20262"))
	require.Equal(t, "r20262 e20261", selectors(k.Keys("shop.example")), "the other algorithm stays")
	require.NoError(t, k.Retire("shop.example", "e20261"))
	require.Equal(t, "r20262", selectors(k.Keys("shop.example")))
	require.ErrorIs(t, k.Activate("shop.example", "none"), ErrNoKey)

	again2 := open(t, dir)
	require.Equal(t, stored(t, k.AllKeys("shop.example")), stored(t, again2.AllKeys("shop.example")), "all of it is durable")
	require.Equal(t, stored(t, k.Keys("shop.example")), stored(t, again2.Keys("shop.example")))
	require.Equal(t, []string{"shop.example"}, again2.Domains())

	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 5, "four keys and the state, nothing left over")
	for _, e := range entries {
		st, err := e.Info()
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), e.Name())
	}
	st, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())
}

func TestGenerateTakesNamesOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o700))
	k := open(t, dir)
	key, err := k.Generate("shop.example", "March", Ed25519)
	require.NoError(t, err)
	require.Equal(t, "march._domainkey.shop.example", key.RecordName())
	require.Equal(t, Pending, key.State)
	_, err = k.Generate("shop.example", "march", RSA2048)
	require.ErrorIs(t, err, ErrExists)
	require.NoError(t, os.Remove(filepath.Join(dir, stateFile)))
	_, err = open(t, dir).Generate("shop.example", "march", Ed25519)
	require.ErrorIs(t, err, ErrExists, "a key file is never written over")
	for _, selector := range []string{"", "a/b", "../x", "a..b", "-a", "a b", strings.Repeat("a", 64), "a;b", "é"} {
		_, err = k.Generate("shop.example", selector, Ed25519)
		require.ErrorContains(t, err, "selector", selector)
	}
	_, err = k.Generate("../etc", "a", Ed25519)
	require.Error(t, err)
	_, err = k.Generate("shop.example", "a", "rsa1024")
	require.ErrorContains(t, err, "no such algorithm")
}

func TestExposedKeyIsRefused(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dkim")
	_, err := open(t, dir).AddDomain("shop.example")
	require.NoError(t, err)
	path := filepath.Join(dir, "shop.example.r20261.pem")
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620} {
		require.NoError(t, os.Chmod(path, mode))
		_, err = Open(dir)
		require.ErrorIs(t, err, ErrExposed)
		require.ErrorContains(t, err, "chmod 600 "+path)
	}
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, os.Chmod(dir, 0o770))
	_, err = Open(dir)
	require.ErrorContains(t, err, "chmod 700 "+dir)
}

func TestOpenRefusesWhatItCannotTrust(t *testing.T) {
	t.Parallel()
	write := func(t *testing.T, state string) string {
		dir := filepath.Join(t.TempDir(), "dkim")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, stateFile), []byte(state), 0o600))
		return dir
	}
	const entry = `{"domain":"shop.example","selector":"s","algorithm":"ed25519","created_at":"2026-01-01T00:00:00Z","changed_at":"2026-01-01T00:00:00Z","state":`
	for name, c := range map[string]struct{ state, want string }{
		"broken":           {`{"version":1,`, "keys.json"},
		"newer":            {`{"version":2,"keys":[]}`, "version 2"},
		"unknown_field":    {`{"version":1,"keys":[],"x":1}`, "unknown field"},
		"active_key_gone":  {`{"version":1,"keys":[` + entry + `"active"}]}`, "shop.example.s.pem"},
		"unknown_state":    {`{"version":1,"keys":[` + entry + `"paused"}]}`, "unknown state"},
		"path_in_selector": {strings.Replace(`{"version":1,"keys":[`+entry+`"active"}]}`, `"s"`, `"../../s"`, 1), "selector"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(write(t, c.state))
			require.ErrorContains(t, err, c.want)
		})
	}
	k, err := Open(write(t, `{"version":1,"keys":[`+entry+`"retired"}]}`))
	require.NoError(t, err, "a retired key may be gone")
	require.Empty(t, k.AllKeys("shop.example"))
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dkim")
	require.NoError(t, os.Mkdir(dir, 0o700))
	left := filepath.Join(dir, newPrefix+"1")
	require.NoError(t, os.WriteFile(left, []byte("half a key"), 0o600))
	open(t, dir)
	require.NoFileExists(t, left)
}

func TestFileWithoutStateOnlyTakesItsSelector(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dkim")
	_, err := open(t, dir).AddDomain("shop.example")
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, stateFile))) // as after a crash before it was written
	k := open(t, dir)
	require.Empty(t, k.Keys("shop.example"))
	keys, err := k.AddDomain("shop.example")
	require.NoError(t, err)
	require.Equal(t, "r20262 e20262", selectors(keys))
}

func TestConfiguredKeysTakeThePlaceOfStoredOnes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "dkim")
	k := open(t, dir)
	_, err := k.AddDomain("shop.example")
	require.NoError(t, err)

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "r1.pem")
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
	loaded, err := k.LoadFile("SHOP.example", "r1", path)
	require.NoError(t, err)
	require.Equal(t, "r1", selectors(k.Keys("shop.example")))
	require.Equal(t, RSA2048, loaded.Algorithm)
	require.Equal(t, "r1 r20261 e20261", selectors(k.AllKeys("shop.example")))
	_, err = k.Rotate("shop.example")
	require.ErrorIs(t, err, ErrConfigured)
	require.ErrorIs(t, k.Retire("shop.example", "r20261"), ErrConfigured)
	added, err := k.AddDomain("shop.example")
	require.NoError(t, err)
	require.Equal(t, "r1", selectors(added))

	require.Equal(t, "r20261 e20261", selectors(open(t, dir).Keys("shop.example")), "it is not kept")
	k.SetLoaded(nil)
	require.Equal(t, "r20261 e20261", selectors(k.Keys("shop.example")))

	require.NoError(t, os.Chmod(path, 0o644))
	_, err = k.LoadFile("shop.example", "r1", path)
	require.ErrorIs(t, err, ErrExposed)
	_, err = k.LoadFile("shop.example", "r1", path+".none")
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = k.LoadFile("shop.example", "r1", filepath.Dir(path))
	require.ErrorContains(t, err, "not a file")
}

func TestWeakOrUnreadableKeyFileIsRefused(t *testing.T) {
	t.Parallel()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"rsa_1024":    {pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(small)}), "1024 bits"},
		"no_pem":      {[]byte("hello"), "no private key"},
		"certificate": {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}), "no private key"},
		"broken":      {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), "asn1"},
	} {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, c.data, 0o600))
		_, err := ReadFile("shop.example", "s", path)
		require.ErrorContains(t, err, c.want, name)
	}
}

func TestKeysMayBeReadWhileTheyChange(t *testing.T) {
	t.Parallel()
	k := open(t, filepath.Join(t.TempDir(), "dkim"))
	_, err := k.Generate("shop.example", "a", Ed25519)
	require.NoError(t, err)
	_, err = k.Generate("shop.example", "b", Ed25519)
	require.NoError(t, err)
	require.NoError(t, k.Activate("shop.example", "a"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					if keys := k.Keys("shop.example"); len(keys) != 1 || keys[0].State != Active {
						t.Errorf("keys %v", keys)
						return
					}
				}
			}
		})
	}
	for range 20 {
		require.NoError(t, k.Activate("shop.example", "b"))
		require.NoError(t, k.Activate("shop.example", "a"))
	}
	close(stop)
	wg.Wait()
}

func TestSplitTXT(t *testing.T) {
	t.Parallel()
	require.Equal(t, `"v=DKIM1"`, SplitTXT("v=DKIM1"))
	require.Equal(t, `""`, SplitTXT(""))
	require.Equal(t, `"`+strings.Repeat("a", 255)+`" "b\"\\"`, SplitTXT(strings.Repeat("a", 255)+`b"\`))
}

// stored is what is to be the same of keys that were made and of those that were read: how crypto/rsa holds a private key in
// memory differs now and then by a leading zero.
func stored(t *testing.T, keys []*Key) []Key {
	t.Helper()
	all := make([]Key, len(keys))
	for i, k := range keys {
		pem, err := k.encodePEM()
		require.NoError(t, err)
		all[i] = *k
		all[i].signer, all[i].tags = nil, k.tags+" "+string(pem)
	}
	return all
}
