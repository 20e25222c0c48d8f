package admin

import (
	"context"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/spool"
)

// postman is spool.Notices that counts what it is asked to write.
type postman struct{ wrote *int }

func (p postman) Count(failed []spool.Settled) int { return len(failed) }

func (p postman) Prepare(_ context.Context, failed []spool.Settled) (spool.Notice, error) {
	return spool.Notice{
		Count: len(failed), Put: func(kv.Tx) error { return nil }, Added: func() { *p.wrote += len(failed) }, Drop: func() {},
	}, nil
}

func TestFailNotifiesWhereAsked(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	ctx := t.Context()
	h.ready("", "example.com")
	one := h.send("x@one.example", "y@two.example")
	a := h.post("/v1/queue/actions", h.key("", "admin"), `{"action":"fail","notify":true,"ids":["`+one+`"]}`)
	require.Equal(t, http.StatusUnprocessableEntity, a.status, "nobody writes notices: %s", a.body)
	wrote := 0
	h.deps.Notices = postman{&wrote}
	a = h.post("/v1/queue/actions", h.key("", "admin"), `{"action":"hold","notify":true,"ids":["`+one+`"]}`)
	require.Equal(t, http.StatusUnprocessableEntity, a.status, "%s", a.body)

	act := api.QueueAction{Action: "fail", Notify: true, DryRun: true, IDs: []string{one}}
	res, err := h.root.QueueAct(ctx, act)
	require.NoError(t, err)
	require.Equal(t, api.QueueActionResult{Action: "fail", DryRun: true, Matched: 2, Changed: 2, Notices: 2}, res)
	require.Zero(t, wrote)
	act.DryRun = false
	res, err = h.root.QueueAct(ctx, act)
	require.NoError(t, err)
	require.Equal(t, api.QueueActionResult{Action: "fail", Matched: 2, Changed: 2, Notices: 2}, res)
	require.Equal(t, 2, wrote)

	two := h.send("z@one.example")
	res, err = h.root.QueueAct(ctx, api.QueueAction{Action: "fail", IDs: []string{two}})
	require.NoError(t, err)
	require.Zero(t, res.Notices, "not unless asked")
	require.Equal(t, 2, wrote)
}
