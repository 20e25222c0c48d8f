package app

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestStatusesThatNobodyHasRegisteredAreOne, so that who holds one return path has no millions of reports to send.
func TestStatusesThatNobodyHasRegisteredAreOne(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]string{
		"5.1.1": "5.1.1", "4.2.2": "4.2.2", "5.7.26": "5.7.26", "5.7.509": "5", "5.8.1": "5", "5.999.999": "5", "4.1.100": "4", "": "", "nonsense": "n",
	} {
		require.Equal(t, want, statusKey(status), status)
	}
}
