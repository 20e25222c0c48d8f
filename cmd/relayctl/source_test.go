package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
)

func TestSourceCommandsRefuse(t *testing.T) {
	t.Parallel()
	r := newRelay(t)
	var page api.Page[api.Source]
	r.json(&page, "", "source", "list")
	require.NotNil(t, page.Data)
	require.Empty(t, page.Data)
	add := []string{"source", "add", "crm", "--driver", "mysql", "--dsn-ref", "env:CRM_DSN", "--table", "customers"}
	r.refused("/list", append(add, "--list", "nobody")...)
	r.refused("/dsn_ref", "source", "add", "crm", "--driver", "mysql", "--dsn-ref", "root:pw@tcp(db)/x", "--table", "t", "--list", "l")
	for _, verb := range []string{"show", "test", "sync", "runs", "remove"} {
		r.refused("no source", "source", verb, "crm")
		r.refused("not_found", "source", verb, "src_nothing")
	}
	for _, args := range [][]string{
		append(add, "--column", "email"),
		{"source", "add"},
		{"source", "sync"},
		{"source", "add", "crm", "--every", "soon"},
		{"source", "add", "crm", "--file", "/dev/null"},
	} {
		code, out, errOut := ctl(t, r.socket, "", args...)
		require.Equal(t, exitUsage, code, "%v: %s", args, errOut)
		require.Empty(t, out)
	}
}
