package admin

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

func TestHostileJSON(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("", "all")
	for name, c := range map[string]struct {
		body, code, pointer string
		status              int
	}{
		"empty":               {"", api.CodeInvalidJSON, "", 400},
		"blank":               {" \n", api.CodeInvalidJSON, "", 400},
		"not_json":            {"hello", api.CodeInvalidJSON, "", 400},
		"two_values":          {`{"scopes":["all"]}{}`, api.CodeInvalidJSON, "", 400},
		"trailing_comma":      {`{"scopes":["all"],}`, api.CodeInvalidJSON, "", 400},
		"nan":                 {`{"scopes":NaN}`, api.CodeInvalidJSON, "", 400},
		"not_utf8":            {"{\"name\":\"\xff\",\"scopes\":[\"all\"]}", api.CodeInvalidJSON, "", 400},
		"duplicate":           {`{"scopes":["all"],"scopes":["all"]}`, api.CodeInvalidJSON, "", 400},
		"duplicate_escaped":   {`{"scopes":["all"],"\u0073copes":["all"]}`, api.CodeInvalidJSON, "", 400},
		"deep_array":          {strings.Repeat("[", 10000) + strings.Repeat("]", 10000), api.CodeInvalidJSON, "", 400},
		"deep_object":         {strings.Repeat(`{"a":`, 100000) + "1" + strings.Repeat("}", 100000), api.CodeInvalidJSON, "", 400},
		"deep_unclosed":       {strings.Repeat("[", 500000), api.CodeInvalidJSON, "", 400},
		"unknown_field":       {`{"scopes":["all"],"colour":"red"}`, api.CodeUnknownField, "/colour", 400},
		"wrong_type":          {`{"scopes":"all"}`, api.CodeInvalidParameter, "/scopes", 400},
		"wrong_type_in_list":  {`{"scopes":[1]}`, api.CodeInvalidParameter, "/scopes", 400},
		"array_for_object":    {`[1]`, api.CodeInvalidParameter, "", 400},
		"number_for_object":   {`9223372036854775808`, api.CodeInvalidParameter, "", 400},
		"null":                {`null`, api.CodeInvalidParameter, "", 422},
		"too_large":           {`{"name":"` + strings.Repeat("x", 2<<20) + `"}`, api.CodeBodyTooLarge, "", 413},
		"unknown_scope":       {`{"scopes":["all","x"]}`, api.CodeInvalidParameter, "", 422},
		"long_scope_and_ansi": {`{"scopes":["\u001b[31m` + strings.Repeat("x", 1000) + `"]}`, api.CodeInvalidParameter, "", 422},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := h.post("/v1/keys", token, c.body)
			p := a.problem(t)
			require.Equal(t, c.status, a.status, a.body)
			require.Equal(t, c.code, p.Code, a.body)
			if c.pointer != "" {
				require.Equal(t, c.pointer, p.Errors[0].Pointer, a.body)
			}
			require.NotContains(t, a.body, "\\u001b")
			require.NotContains(t, a.body, "Go struct", "no insides of the program")
			require.NotContains(t, a.body, "api.")
		})
	}
}

func TestMediaTypes(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("", "all")
	body := `{"scopes":["queue:read"]}`
	for _, mediaType := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "x", "text/json"} {
		a := h.raw("POST", "/v1/keys", token, body, "Content-Type", mediaType)
		require.Equal(t, http.StatusUnsupportedMediaType, a.status, mediaType)
	}
	for _, mediaType := range []string{"application/json", "application/json; charset=utf-8", "Application/JSON"} {
		a := h.raw("POST", "/v1/keys", token, body, "Content-Type", mediaType)
		require.Equal(t, http.StatusCreated, a.status, mediaType)
	}
	require.Equal(t, http.StatusUnsupportedMediaType, h.post("/v1/keys", token, body, "Content-Encoding", "gzip").status)
	require.Equal(t, http.StatusUnsupportedMediaType,
		h.raw("POST", "/v1/suppressions/import", token, "x", "Content-Type", "text/csv", "Content-Encoding", "gzip").status)
	require.Equal(t, http.StatusUnsupportedMediaType,
		h.raw("POST", "/v1/suppressions/import", token, "x", "Content-Type", "application/json").status)
}

// endless is a body that never ends.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	e.read.Add(int64(len(p)))
	return len(p), nil
}

func TestEndlessBodyIsCut(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	body := &endless{}
	req, err := http.NewRequestWithContext(t.Context(), "POST", h.url+"/v1/keys", io.MultiReader(strings.NewReader("{"), body))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+h.key("", "all"))
	res, err := h.http.Do(req)
	if err == nil { // the connection may also be reset while we write
		require.Equal(t, http.StatusRequestEntityTooLarge, res.StatusCode)
		_ = res.Body.Close()
	}
	require.Less(t, body.read.Load(), int64(16<<20))
}

func TestQueryParameters(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	token := h.key("", "all")
	for _, path := range []string{
		"/v1/queue?limt=1", "/v1/queue?limit=0", "/v1/queue?limit=1001", "/v1/queue?limit=x", "/v1/queue?limit=1&limit=2",
		"/v1/queue?state=happy", "/v1/queue?class=x", "/v1/queue?message=x", "/v1/queue?older_than_seconds=-1",
		"/v1/queue?older_than_seconds=9223372036854775807", "/v1/queue?query=colour%3Dred", "/v1/queue?domain=a%20b",
		"/v1/events?since=yesterday", "/v1/events?until=2026-11-20T09:00:00", "/v1/queue/stats?queues=-1", "/v1/version?x=1",
		"/v1/suppressions/export?format=xml", "/v1/suppressions/nonsense",
	} {
		a := h.raw("GET", path, token, "")
		require.Equal(t, http.StatusBadRequest, a.status, "%s: %s", path, a.body)
		require.Equal(t, api.CodeInvalidParameter, a.problem(t).Code, path)
	}
}

func TestCursorsAreBound(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	for _, email := range []string{"a@x.example", "b@x.example", "c@x.example"} {
		_, err := h.root.AddSuppression(t.Context(), api.Suppression{Email: email})
		require.NoError(t, err)
		_, err = h.root.AddSuppression(t.Context(), api.Suppression{Email: email, Account: "other"})
		require.NoError(t, err)
	}
	token := h.key("", "all")
	first, err := h.root.Suppressions(t.Context(), "", api.List{Limit: 2})
	require.NoError(t, err)
	require.True(t, first.HasMore)
	second, err := h.root.Suppressions(t.Context(), "", api.List{Limit: 1, Cursor: first.NextCursor})
	require.NoError(t, err)
	require.Equal(t, "c@x.example", second.Data[0].Email)
	require.False(t, second.HasMore)
	require.Empty(t, second.NextCursor)

	_, err = h.root.Suppressions(t.Context(), "other", api.List{Cursor: first.NextCursor})
	requireCode(t, err, api.CodeCursorMismatch)
	_, err = h.root.Keys(t.Context(), "", api.List{Cursor: first.NextCursor})
	requireCode(t, err, api.CodeCursorMismatch)
	a := h.raw("GET", "/v1/suppressions?cursor="+first.NextCursor, token, "")
	require.Equal(t, http.StatusBadRequest, a.status, "another caller's cursor")
	for i := range first.NextCursor {
		broken := []byte(first.NextCursor)
		broken[i] ^= 1
		_, err := h.root.Suppressions(t.Context(), "", api.List{Cursor: string(broken)})
		requireCode(t, err, api.CodeCursorMismatch)
	}
	again, err := newCursorSealer(t.Context(), h.db)
	require.NoError(t, err)
	require.Equal(t, h.cursors, again, "cursors outlive a restart")
}

func FuzzCheckJSON(f *testing.F) {
	for _, seed := range []string{`{"a":1,"a":2}`, `[{"a":{"b":[1,"x\"y"]}}]`, `{"\u0061":1,"a":2}`, "{", `"`, `"\`, `{"a":"}`, "[]]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		err := checkJSON(b)
		if err == nil && len(b) > 0 {
			require.True(t, json.Valid(b))
			_, _ = pointerTo(b, "a"), duplicates(t, b)
		}
		if !json.Valid(b) && len(b) > 0 {
			require.Error(t, err)
		}
	})
}

// duplicates reads b in another way and wants no name twice.
func duplicates(t *testing.T, b []byte) int {
	d := json.NewDecoder(bytes.NewReader(b))
	type object struct {
		names map[string]bool
		key   bool
	}
	var open []*object
	n := 0
	for {
		token, err := d.Token()
		if err != nil {
			return n
		}
		top := func() *object {
			if len(open) == 0 {
				return nil
			}
			return open[len(open)-1]
		}
		if o := top(); o != nil && o.names != nil && o.key {
			if name, ok := token.(string); ok {
				require.False(t, o.names[name], "%q stands twice in %q", name, b)
				o.names[name], o.key = true, false
				n++
				continue
			}
		}
		switch token {
		case json.Delim('{'):
			open = append(open, &object{map[string]bool{}, true})
			continue
		case json.Delim('['):
			open = append(open, &object{})
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:len(open)-1]
		}
		if o := top(); o != nil {
			o.key = true
		}
	}
}

func BenchmarkCheckJSON(b *testing.B) {
	var doc bytes.Buffer
	doc.WriteString(`{"recipients":[`)
	for i := range 10000 {
		if i > 0 {
			doc.WriteByte(',')
		}
		doc.WriteString(`{"email":"someone@example.com","attributes":{"Name":"Someone","Gender":"F"}}`)
	}
	doc.WriteString("]}")
	b.SetBytes(int64(doc.Len()))
	b.ReportAllocs()
	for b.Loop() {
		if err := checkJSON(doc.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
}
