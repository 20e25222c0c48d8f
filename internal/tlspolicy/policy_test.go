package tlspolicy

import (
	"crypto/tls"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
)

func TestLevels(t *testing.T) {
	t.Parallel()
	ca := testutil.NewCA(t)
	for _, c := range []struct {
		level         Level
		valid, strict bool
		foreign       bool // a certificate for another name will do
	}{
		{"", true, false, true},
		{None, true, false, true},
		{Opportunistic, true, false, true},
		{Require, true, true, true},
		{Verify, true, true, false},
		{"Verify", false, false, true},
	} {
		require.Equal(t, c.valid, c.level.Valid(), c.level)
		require.Equal(t, c.strict, c.level.Strict(), c.level)
		require.NoError(t, handshake(t, c.level.Client("mx.test", ca.Pool()), ca.Server(t, "mx.test")), c.level)
		err := handshake(t, c.level.Client("mx.test", ca.Pool()), ca.Server(t, "somebody.else"))
		require.Equal(t, c.foreign, err == nil, "%s: %v", c.level, err)
		old := ca.Server(t, "mx.test")
		old.MinVersion, old.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
		require.Error(t, handshake(t, c.level.Client("mx.test", ca.Pool()), old), "TLS 1.1 is none")
	}
}

// handshake is the client's result.
func handshake(t *testing.T, client, server *tls.Config) error {
	t.Helper()
	c, s := net.Pipe()
	defer c.Close()
	go func() {
		_ = tls.Server(s, server).Handshake()
		_ = s.Close()
	}()
	return tls.Client(c, client).HandshakeContext(t.Context())
}
