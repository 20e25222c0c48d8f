package tlspolicy

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

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
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	require.NoError(t, err)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = c.(*tls.Conn).HandshakeContext(t.Context()) //nolint:forcetypeassert // of tls.Listen
		_ = c.Close()
	}()
	d := tls.Dialer{Config: client, NetDialer: &net.Dialer{Timeout: 10 * time.Second}}
	c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
	if err == nil {
		_ = c.Close()
	}
	return err
}
