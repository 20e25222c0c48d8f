package delivery

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/testutil"
	"relayd/spool"
)

var zone = map[string][]string{
	"dest.example":  {"@ MX 10 mx", "mx A 127.0.0.1"},
	"other.example": {"@ MX 10 mx.dest.example."},
}

func TestDelivers(t *testing.T) {
	t.Parallel()
	mx := (&testutil.MX{}).Start(t)
	r := newRig(t, mx.PortNumber(), zone).start()
	id := r.send("one@dest.example")
	got := r.outcome(id, 0)
	require.Equal(t, spool.Delivered, got.Result.Outcome)
	require.Equal(t, "mx.dest.example[127.0.0.1]", got.Result.Host)
	require.Equal(t, 1, got.Envelope.Attempts)
	mails := mx.Wait(t, 1)
	require.Equal(t, "sender@sender.example", mails[0].From)
	require.Empty(t, mx.Faults())
}
