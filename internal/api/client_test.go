package api

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := NewClient(srv.URL+"/", "rk_live_x_y")
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestClientSendsKeyAndDecodes(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer rk_live_x_y" || r.URL.Path != "/v1/version" {
			w.WriteHeader(http.StatusTeapot)
		}
		_, _ = io.WriteString(w, `{"version":"1","more":"is welcome"}`)
	})
	v, err := c.Version(t.Context())
	require.NoError(t, err)
	require.Equal(t, "1", v.Version)
}

func TestClientReturnsProblems(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = io.WriteString(w, `{"code":"invalid_parameter","detail":"It is wrong.","request_id":"req_1",
			"errors":[{"pointer":"/a","code":"x","detail":"A is wrong."},{"pointer":"","code":"x","detail":"It is wrong."}]}`)
	})
	_, err := c.CreateKey(t.Context(), CreateKey{})
	var p *Problem
	require.ErrorAs(t, err, &p)
	require.Equal(t, http.StatusUnprocessableEntity, p.Status)
	require.Equal(t, "req_1", p.RequestID)
	require.EqualError(t, err, "invalid_parameter: It is wrong.; /a: A is wrong.")
}

func TestClientMakesAProblemOfOtherAnswers(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>proxy", http.StatusBadGateway) })
	_, err := c.Version(t.Context())
	require.EqualError(t, err, "http_502: Bad Gateway")
}

func TestClientFollowsNoRedirect(t *testing.T) {
	t.Parallel()
	called := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { called = true }))
	t.Cleanup(other.Close)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
	})
	_, err := c.Version(t.Context())
	require.Error(t, err)
	require.False(t, called, "the key stays with the host that it is for")
}

func TestClientStreamsUploads(t *testing.T) {
	t.Parallel()
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		if r.Header.Get("Content-Type") != "text/csv" || r.ContentLength != -1 || r.Header.Get(ImportOptionsHeader) == "" {
			w.WriteHeader(http.StatusTeapot)
		}
		_ = json.NewEncoder(w).Encode(ImportReport{BytesRead: n})
	})
	rep, err := c.AddRecipients(t.Context(), "cmp_1", "text/csv", io.LimitReader(zeros{}, 5<<20), ImportOptions{ColumnMap: map[string]string{"이름": "attributes.Name"}})
	require.NoError(t, err)
	require.Equal(t, int64(5<<20), rep.BytesRead)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestUnixClientSpeaksOfTheDaemonNotOfURLs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	c := NewUnixClient(path)
	_, err := c.Version(t.Context())
	require.ErrorContains(t, err, "call relayd: dial unix "+path)
	require.NotContains(t, err.Error(), "http://")

	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" && r.URL.EscapedPath() == "/v1/suppressions/%22a%2Fb%22@example.com" {
			_, _ = io.WriteString(w, `{"removed":1}`)
		}
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	out, err := c.RemoveSuppression(t.Context(), "", `"a/b"@example.com`, "global")
	require.NoError(t, err)
	require.Equal(t, 1, out.Removed)
	c.Close()
}

func TestNewClientRefusesBadAddressesAndKeys(t *testing.T) {
	t.Parallel()
	for _, bad := range []string{"", "relay.example.com", "ftp://x", "http://", "https://u:p@x", "https://x?a=b", "://"} {
		_, err := NewClient(bad, "k")
		require.Error(t, err, bad)
	}
	for _, bad := range []string{"se cret", "se\r\ncret", "ключ"} {
		_, err := NewClient("https://x", bad)
		require.Error(t, err)
		require.NotContains(t, err.Error(), bad)
	}
}

func TestMailboxForms(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Mailboxes{
		`"a@b.c"`:                                {{Email: "a@b.c"}},
		`{"email":"a@b.c","name":"A"}`:           {{Email: "a@b.c", Name: "A"}},
		`["a@b.c",{"email":"d@e.f"}]`:            {{Email: "a@b.c"}, {Email: "d@e.f"}},
		`[]`:                                     {},
		` [ {"name":"A","email":"a@b.c"} , "x"]`: {{Email: "a@b.c", Name: "A"}, {Email: "x"}},
	} {
		var got Mailboxes
		require.NoError(t, json.Unmarshal([]byte(text), &got), text)
		require.Equal(t, want, got, text)
	}
	for _, bad := range []string{`1`, `[1]`, `true`, `{"email":1}`, `{"mail":"x"}`, `[["a"]]`} {
		var got Mailboxes
		err := json.Unmarshal([]byte(bad), &got)
		require.Error(t, err, bad)
		require.NotContains(t, err.Error(), "plain", "no inner type")
	}
}
