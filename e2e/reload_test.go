package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestReloadedConfigurationHoldsForNewSessions sends SIGHUP with a faulty and with a good configuration.
func TestReloadedConfigurationHoldsForNewSessions(t *testing.T) {
	t.Parallel()
	mx := newSink(t, "", nil)
	up := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: mx.port, level: "info"})
	r.mx("dest.example")
	l := r.domain("shop.example")
	send := func(subject string) {
		t.Helper()
		r.submit(l, "news@shop.example", []string{"ann@dest.example"}, plain("news@shop.example", "ann@dest.example", subject))
	}
	reload := func(text, event string) {
		t.Helper()
		n := strings.Count(r.logText(), `"`+event+`"`)
		require.NoError(t, os.WriteFile(filepath.Join(r.dir, "relayd.toml"), []byte(text), 0o600))
		require.NoError(t, r.cmd.Process.Signal(syscall.SIGHUP))
		wait(t, event, 20*time.Second, func() bool { return strings.Count(r.logText(), `"`+event+`"`) > n })
	}
	send("before")
	wait(t, "the first letter", 20*time.Second, func() bool { return mx.count() == 1 })

	reload(r.conf+"[[delivery.rule]]\nroute = \"nowhere\"\n", "configuration.kept")
	wait(t, "the fault in the log", 5*time.Second, func() bool { return strings.Contains(r.logText(), `delivery.rule[0].route`) })
	send("faulty")
	wait(t, "the second letter", 20*time.Second, func() bool { return mx.count() == 2 })

	routes := "[[delivery.smarthost]]\nname = \"up\"\naddress = \"127.0.0.1:" + itoa(up.port) + "\"\ntls = \"none\"\n" +
		"[[delivery.rule]]\nsender_domains = [\"shop.example\"]\nroute = \"up\"\n"
	reload(r.conf+routes, "configuration.loaded")
	send("good")
	wait(t, "the third letter", 20*time.Second, func() bool { return up.count() == 1 })
	require.Equal(t, 2, mx.count())

	t.Run("limits_and_providers", func(t *testing.T) {
		reload(r.conf+routes+"[delivery.limits.provider.nobody]\nconnections = 7\n", "configuration.kept")
		wait(t, "the fault in the log", 5*time.Second, func() bool {
			return strings.Contains(r.logText(), `delivery.limits.provider.nobody: the provider rules know no`)
		})
		file := filepath.Join(r.dir, "providers.txt")
		require.NoError(t, os.WriteFile(file, []byte("provider dest connections=7\nmx dest .dest.example\n"), 0o600))
		own := strings.Replace(r.conf, "[delivery]\n", "[delivery]\nproviders_file = \""+file+"\"\n", 1)
		require.NotEqual(t, r.conf, own)
		reload(own+"[delivery.limits.site.\"mx.dest.example\"]\nconnections = 3\nrate = \"1/h\"\n", "configuration.loaded")
		send("limited")
		wait(t, "the letter within the rate", 20*time.Second, func() bool { return mx.count() == 3 })
		send("held")
		wait(t, "the rate to hold", 20*time.Second, func() bool {
			out, _, _ := r.ctl("site", "show", "mx.dest.example")
			return strings.Contains(out, "1/h") && strings.Contains(out, "limited")
		})
		require.Equal(t, 3, mx.count())
		reload(own, "configuration.loaded")
		wait(t, "the letter that the rate held", 20*time.Second, func() bool { return mx.count() == 4 })
		require.NotContains(t, r.logText(), "wait for a restart")
	})
	t.Run("move_forces_direct_mx", func(t *testing.T) {
		up.onRcpt = func(string, string) error { return reply(451, 4, 2, 0, "Not here") }
		slow := strings.Replace(r.conf, `first_delay = "300ms"`, `first_delay = "4m"`, 1)
		reload(slow+routes, "configuration.loaded")
		send("moved")
		wait(t, "a deferral", 20*time.Second, func() bool { return r.stats().Deferred == 1 })
		_, stderr, code := r.ctl("queue", "move", "--route", "mx", "domain=dest.example")
		require.Zero(t, code, stderr)
		wait(t, "the letter by its MX", 20*time.Second, func() bool { return mx.count() == 5 })
	})
}
