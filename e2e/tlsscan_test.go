package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTLSScan runs testssl.sh against a STARTTLS and an implicit listener: no finding of medium weight or above, but for
// those about a certificate that a test has made itself. docs/security.md reviews the findings. It takes minutes:
// make tlsscan.
func TestTLSScan(t *testing.T) {
	if os.Getenv("RELAYD_E2E_TLSSCAN") == "" {
		t.Skip("takes minutes: make tlsscan")
	}
	needs(t, "testssl")
	s := newSink(t, "", nil)
	r := newRelay(t, options{mxPort: s.port, level: "info", extra: "[smtp]\ngreet_delay = \"0s\"\n"})
	for name, args := range map[string][]string{
		"starttls": {"--starttls", "smtp", "127.0.0.1:" + itoa(r.submission)},
		"implicit": {"127.0.0.1:" + itoa(r.implicit)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "findings.json")
			line := append([]string{"--quiet", "--color", "0", "--warnings", "off", "--nodns", "none", "--jsonfile", file}, args...)
			out, err := exec.CommandContext(t.Context(), "testssl", line...).CombinedOutput()
			t.Logf("%s\n%v", out, err) // it exits with the number of findings
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			var findings []struct{ ID, Severity, Finding string }
			require.NoError(t, json.Unmarshal(b, &findings))
			require.Greater(t, len(findings), 50, "the scan was complete")
			seen := map[string]string{}
			for _, f := range findings {
				seen[f.ID] = f.Finding
				switch f.Severity {
				case "OK", "INFO", "LOW", "DEBUG":
					continue
				case "WARN": // of the scanner, about itself
					require.Equal(t, "engine_problem", f.ID, f.Finding)
					continue
				}
				require.True(t, ofTheCertificate(f.ID), "%s %s: %s", f.Severity, f.ID, f.Finding)
			}
			require.Contains(t, seen["TLS1_3"], "offered")
			require.Equal(t, "not offered", seen["TLS1"])
			require.Equal(t, "not offered", seen["TLS1_1"])
		})
	}
}

// ofTheCertificate tells the findings about a certificate that nobody has signed, that names no revocation list and has
// no long life.
func ofTheCertificate(id string) bool {
	return slices.ContainsFunc([]string{"cert", "OCSP_stapling", "DNS_CAArecord", "overall_grade", "grade_cap_reason", "scanTime"}, func(s string) bool {
		return strings.HasPrefix(id, s)
	})
}
