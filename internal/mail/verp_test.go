package mail

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var issued = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func openVERP(t testing.TB) *VERP {
	t.Helper()
	v, err := OpenVERP(filepath.Join(t.TempDir(), "return-path.keys"))
	require.NoError(t, err)
	return v
}

func TestReturnPathsComeBack(t *testing.T) {
	t.Parallel()
	v := openVERP(t)
	id := EnvelopeID{NewQueueID(issued), 1<<63 + 5}
	p := v.Path(id, issued, "bounces.example")
	require.Equal(t, "bounces.example", p.Domain)
	require.LessOrEqual(t, len(p.Local), 64, "RFC 5321 section 4.5.3.1.1")
	again, err := ParsePath(p.String())
	require.NoError(t, err)
	require.Equal(t, p, again)
	for _, local := range []string{p.Local, strings.ToUpper(p.Local)} {
		got, err := v.Open(local, issued.Add(VERPLife))
		require.NoError(t, err)
		require.Equal(t, id, got)
	}
	require.Equal(t, p, v.Path(id, issued.Add(time.Hour), "bounces.example"), "the same on the same day")

	require.NoError(t, v.Rotate())
	require.NotEqual(t, p, v.Path(id, issued, "bounces.example"))
	again2, err := OpenVERP(v.keys.path)
	require.NoError(t, err)
	_, err = again2.Open(p.Local, issued)
	require.NoError(t, err, "an older key goes on checking, after a restart")
	got, err := again2.Open(v.Path(id, issued, "x.example").Local, issued)
	require.NoError(t, err)
	require.Equal(t, id, got)
}

// TestG10_ReturnPathsTolerateAClockThatIsOff: one that was set back by an hour, or runs ten days ahead.
func TestG10_ReturnPathsTolerateAClockThatIsOff(t *testing.T) {
	t.Parallel()
	v := openVERP(t)
	id := EnvelopeID{NewQueueID(issued), 7}
	for hour := range 24 {
		at := issued.Truncate(verpDay).Add(time.Duration(hour) * time.Hour)
		local := v.Path(id, at, "x.example").Local
		for _, off := range []time.Duration{-time.Hour, -24 * time.Hour, 240 * time.Hour} {
			got, err := v.Open(local, at.Add(off))
			require.NoError(t, err, "%s after %s", off, at)
			require.Equal(t, id, got)
		}
	}
}

func TestReturnPathsThatWeDidNotIssue(t *testing.T) {
	t.Parallel()
	v := openVERP(t)
	local := v.Path(EnvelopeID{NewQueueID(issued), 7}, issued, "x.example").Local
	bad := map[string]string{
		"empty": "", "prefix": verpPrefix, "cut": local[:len(local)-1], "longer": local + "a", "other prefix": "u." + local[2:],
		"of another relay": openVERP(t).Path(EnvelopeID{NewQueueID(issued), 7}, issued, "x.example").Local,
		"not base32":       local[:10] + "1" + local[11:],
	}
	for name, l := range bad {
		_, err := v.Open(l, issued)
		require.ErrorIs(t, err, ErrBadReturnPath, name)
	}
	for i := len(verpPrefix); i < len(local); i++ { // every character is under the MAC
		for _, c := range "abcdefghijklmnopqrstuvwxyz234567" {
			if other := local[:i] + string(c) + local[i+1:]; other != local {
				_, err := v.Open(other, issued)
				require.ErrorIs(t, err, ErrBadReturnPath, other)
			}
		}
	}
	for _, at := range []time.Time{issued.Add(VERPLife + 2*verpDay), issued.Add(-3 * verpDay)} {
		_, err := v.Open(local, at)
		require.ErrorIs(t, err, ErrBadReturnPath, "%s", at)
	}
}

func TestReturnPathKeyFile(t *testing.T) {
	t.Parallel()
	good := "1 " + strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"open to others": {good, 0o644, "chmod 600"},
		"empty":          {"# none\n", 0o600, "holds no key"},
		"no number":      {strings.Repeat("ab", 32), 0o600, "line 1"},
		"short":          {"1 abcd", 0o600, "32 bytes"},
		"twice":          {good + "\n" + good, 0o600, "line 2: key 1 is there twice"},
		"zero":           {"0 " + strings.Repeat("ab", 32), 0o600, "from 1 to 255"},
	} {
		file := filepath.Join(t.TempDir(), "keys")
		require.NoError(t, os.WriteFile(file, []byte(c.text), c.mode))
		_, err := OpenVERP(file)
		require.ErrorContains(t, err, c.want, name)
	}
}

func FuzzReturnPath(f *testing.F) {
	v := openVERP(f)
	f.Add(v.Path(EnvelopeID{NewQueueID(issued), 7}, issued, "x.example").Local)
	f.Add("b.aaaa")
	f.Fuzz(func(t *testing.T, local string) {
		id, err := v.Open(local, issued)
		if err == nil && !strings.EqualFold(v.Path(id, issued, "x.example").Local, local) {
			t.Fatalf("%q was never issued", local)
		}
	})
}
