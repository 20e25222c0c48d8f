package delivery

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestConfigTellsEveryFault(t *testing.T) {
	t.Parallel()
	require.NoError(t, DefaultConfig().Validate())
	c := DefaultConfig()
	c.MXPort, c.MaxConnections, c.MaxRecipients, c.Route = 0, 0, 101, "nowhere"
	c.Retry.Attempts, c.Retry.Multiplier = 0, 0.5
	c.Policies = map[string]Retry{"urgent": {}}
	c.ConnectTimeout, c.SuspendMax = 2*time.Minute, time.Millisecond
	c.Smarthosts = []Smarthost{
		{Name: "mx", Address: "nonsense", TLS: "ssl"},
		{Name: "up", Address: "smtp.example.net:25", TLS: "none", Username: "x"},
		{Name: "up", Address: "smtp.example.net:25", PasswordFile: "x"},
	}
	err := c.Validate()
	for _, key := range []string{
		"delivery.mx_port: 0", "delivery.max_connections: 0", "delivery.max_recipients_per_transaction: 101", `delivery.route: "nowhere"`,
		"delivery.retry.attempts: 0", "delivery.retry.multiplier: 0.5", "retry.urgent.attempts", "retry.urgent.first_delay", "retry.urgent.max_age",
		"delivery.connect_timeout: 2m0s", "delivery.suspend_max: 1ms", `delivery.smarthost[0].name: "mx"`, "delivery.smarthost[0].address",
		"delivery.smarthost[0].tls", "delivery.smarthost[1].tls: none is for loopback", "delivery.smarthost[1].password_file",
		`delivery.smarthost[2].name: "up"`, "delivery.smarthost[2].username",
	} {
		require.ErrorContains(t, err, key)
	}
}
