package smtpd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/dkim"
)

// TestInboundDKIMVectors has messages that dkimpy signed, and what it says of them when they are changed.
func TestInboundDKIMVectors(t *testing.T) {
	t.Parallel()
	const dir = "testdata/dkimpy"
	b, err := os.ReadFile(filepath.Join(dir, "vectors.json"))
	require.NoError(t, err)
	var set struct {
		Records records
		Vectors []struct {
			Name string
			Want []string
		}
	}
	require.NoError(t, json.Unmarshal(b, &set))
	require.GreaterOrEqual(t, len(set.Vectors), 15)
	for _, v := range set.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			t.Parallel()
			message, err := os.ReadFile(filepath.Join(dir, v.Name+".eml"))
			require.NoError(t, err)
			found, err := dkim.Verify(t.Context(), bytes.NewReader(message), set.Records)
			require.NoError(t, err)
			var got []string
			for _, f := range found {
				require.Equal(t, "sender.example", f.Domain)
				got = append(got, f.Result)
			}
			require.Equal(t, v.Want, got, "%+v", found)
		})
	}
}
