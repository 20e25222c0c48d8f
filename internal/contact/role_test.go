package contact

import (
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/mail"
)

func TestRoleAddresses(t *testing.T) {
	t.Parallel()
	for _, yes := range []string{"info@x.example", "Admin@x.example", "support+shop@x.example", "no-reply@x.example"} {
		require.True(t, IsRole(mail.MustParsePath(yes)), yes)
	}
	for _, no := range []string{"information@x.example", "ann.admin@x.example", "ann+info@x.example", "kim@info.example"} {
		require.False(t, IsRole(mail.MustParsePath(no)), no)
	}
}
