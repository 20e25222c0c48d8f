package app

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

// TestCertificateIsReadAgainWhenItsFilesChange, and a bad pair leaves the old one in use.
func TestCertificateIsReadAgainWhenItsFilesChange(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(name string, at time.Time) {
		pair := ca.Server(t, name).Certificates[0]
		der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600))
		require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
		require.NoError(t, os.Chtimes(cert, at, at))
	}
	now := time.Now()
	write("one.example", now)
	c, err := loadCertificate(cert, key)
	require.NoError(t, err)
	require.False(t, c.changed())
	write("two.example", now.Add(time.Minute))
	require.True(t, c.changed())
	require.NoError(t, c.reload())
	require.False(t, c.changed())
	require.Equal(t, []string{"two.example"}, c.get().Leaf.DNSNames)
	require.NoError(t, os.WriteFile(key, []byte("nonsense"), 0o600))
	require.True(t, c.changed())
	require.Error(t, c.reload())
	require.False(t, c.changed()) // tried once, not again and again
	require.Equal(t, []string{"two.example"}, c.get().Leaf.DNSNames)
}
