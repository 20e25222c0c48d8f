package admin

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/internal/contact"
	"relayd/internal/source"
)

// newSources makes sources that have no database, and lists to feed.
func newSources(t testing.TB, h *harness) *source.Service {
	t.Helper()
	book, err := contact.New(t.Context(), contact.Deps{DB: h.db, TempDir: t.TempDir()})
	require.NoError(t, err)
	for _, owner := range []string{"default", "shop"} {
		require.NoError(t, book.CreateList(t.Context(), &contact.List{Account: owner, Name: "customers"}, nil))
	}
	cfg := source.DefaultConfig()
	cfg.DSNRefs = []string{"shop env:CRM_DSN"}
	s, err := source.New(cfg, source.Deps{
		DB: h.db, Contacts: book, Events: h.events, Env: func(string) string { return "" },
	})
	require.NoError(t, err)
	return s
}

const crm = `{"name":"crm","driver":"mysql","dsn_ref":"env:CRM_DSN","list":"customers","query":{"table":"customers",` +
	`"columns":{"email":"email","status":"subscribed"},"cursor":{"updated_at":"updated_at","key":"id"}}}`

func TestSourceLife(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key := h.key("shop", "contacts:import", "contacts:read")
	made := h.raw("POST", "/v1/sources", key, crm, "Content-Type", "application/json", "Idempotency-Key", "one")
	require.Equal(t, http.StatusCreated, made.status, made.body)
	var src api.Source
	require.NoError(t, json.Unmarshal([]byte(made.body), &src))
	require.True(t, strings.HasPrefix(src.ID, "src_"))
	require.Equal(t, "idle", src.State)
	require.Nil(t, src.Watermark)
	require.Equal(t, 2000, src.PageSize)
	require.EqualValues(t, 600, src.LookbackSeconds)
	require.Equal(t, "/v1/sources/"+src.ID, made.header.Get("Location"))
	again := h.raw("POST", "/v1/sources", key, crm, "Content-Type", "application/json", "Idempotency-Key", "one")
	require.Equal(t, "true", again.header.Get("Idempotent-Replayed"))
	require.JSONEq(t, made.body, again.body)
	require.Equal(t, http.StatusConflict, h.raw("POST", "/v1/sources", key, crm, "Content-Type", "application/json").status, "the name is taken")

	path := "/v1/sources/" + src.ID
	shown := h.raw("GET", path, key, "")
	require.Equal(t, src.ETag, shown.header.Get("ETag"))
	require.Equal(t, http.StatusPreconditionFailed, h.raw("PATCH", path, key, `{"page_size":10}`, "Content-Type", "application/json", "If-Match", `"9"`).status)
	patched := h.raw("PATCH", path, key, `{"page_size":10}`, "Content-Type", "application/json", "If-Match", src.ETag)
	require.Equal(t, http.StatusOK, patched.status, patched.body)
	require.NotEqual(t, src.ETag, patched.header.Get("ETag"))

	test := h.raw("POST", path+"/test", key, "")
	require.Equal(t, http.StatusOK, test.status, test.body)
	require.Contains(t, test.body, `"ok":false`)
	require.Contains(t, test.body, "dsn_unreadable")

	for _, body := range []string{"", `{"full":true}`} {
		run := h.raw("POST", path+"/sync", key, body, "Content-Type", "application/json")
		require.Equal(t, http.StatusAccepted, run.status, run.body)
		require.Contains(t, run.body, `"state":"queued"`)
		require.Contains(t, run.header.Get("Location"), path+"/runs/run_")
	}
	var runs api.Page[api.SourceRun]
	require.NoError(t, json.Unmarshal([]byte(h.raw("GET", path+"/runs?limit=1", key, "").body), &runs))
	require.Len(t, runs.Data, 1, "the second call joined the first")
	require.True(t, runs.Data[0].Full)
	require.Equal(t, http.StatusOK, h.raw("GET", path+"/runs/"+runs.Data[0].ID, key, "").status)
	require.Equal(t, http.StatusBadRequest, h.raw("GET", path+"/runs/"+runs.Data[0].ID+"?wait_seconds=31", key, "").status)

	require.Equal(t, http.StatusNoContent, h.raw("DELETE", path, key, "").status)
	require.Equal(t, http.StatusNotFound, h.raw("GET", path, key, "").status)
}

func TestSourceRights(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	key, reader, rival := h.key("shop", "contacts:import", "contacts:read"), h.key("shop", "contacts:read"), h.key("rival", "all")
	post := func(key, body string) answer {
		return h.raw("POST", "/v1/sources", key, body, "Content-Type", "application/json")
	}
	made := post(key, crm)
	require.Equal(t, http.StatusCreated, made.status, made.body)
	var src api.Source
	require.NoError(t, json.Unmarshal([]byte(made.body), &src))
	require.Equal(t, http.StatusForbidden, post(reader, crm).status)
	other := strings.Replace(strings.Replace(crm, `"crm"`, `"two"`, 1), "CRM_DSN", "OTHER", 1)
	require.Equal(t, http.StatusForbidden, post(key, other).status, "a DSN that is not listed for the account")
	require.Equal(t, http.StatusCreated, post(h.key("", "admin"), other).status, "an administrator may name any")
	for _, call := range [][2]string{{"GET", ""}, {"DELETE", ""}, {"GET", "/runs"}, {"POST", "/test"}, {"POST", "/sync"}} {
		require.Equal(t, http.StatusNotFound, h.raw(call[0], "/v1/sources/"+src.ID+call[1], rival, "").status, call)
	}
	secret := strings.Replace(crm, "env:CRM_DSN", "root:s3cret@tcp(db)/x", 1)
	bad := post(key, secret)
	require.Equal(t, http.StatusUnprocessableEntity, bad.status)
	require.Contains(t, bad.body, "/dsn_ref")
	require.NotContains(t, bad.body, "s3cret")
	require.NotContains(t, h.logs.String(), "s3cret")
	require.Equal(t, http.StatusBadRequest, post(key, strings.Replace(crm, `"list"`, `"lisst"`, 1)).status)
}
