package delivery

import (
	"github.com/prometheus/client_golang/prometheus"

	"relayd/spool"
)

// metrics of this package, see docs/metrics.md.
type metrics struct {
	results     *prometheus.CounterVec // by outcome, deferred included
	inDoubt     prometheus.Counter
	connects    *prometheus.CounterVec // by result
	sessions    *prometheus.CounterVec // by TLS version
	brokenTLS   prometheus.Counter
	suspensions *prometheus.CounterVec // by cause
	suspended   prometheus.Gauge
	connections *prometheus.GaugeVec // by state
	octets      prometheus.Counter
	wait        *prometheus.HistogramVec // by class, from acceptance to delivery
	transaction prometheus.Histogram
	notices     *prometheus.CounterVec // by result
	authRefused prometheus.Counter
	panics      prometheus.Counter
	settleFails prometheus.Counter
}

// causes of a suspension.
const (
	causeUnreachable = "unreachable"
	causeThrottled   = "throttled"
	causeAuth        = "auth"
	causeDNS         = "dns"
)

func newMetrics(reg prometheus.Registerer) *metrics {
	vec := func(name, help, label string, values ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "relayd_delivery_" + name, Help: help}, []string{label})
		for _, value := range values {
			v.WithLabelValues(value)
		}
		return v
	}
	one := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "relayd_delivery_" + name, Help: help})
	}
	m := &metrics{
		results: vec("results_total", "Envelopes settled after an attempt.", "outcome", "deferred", "delivered", "bounced",
			"failed", "expired", "suppressed", "cancelled"),
		inDoubt: one("in_doubt_total", "Envelopes whose final reply was lost: possible duplicates."),
		connects: vec("connects_total", "Attempts to open a session.", "result", "opened", "refused", "timeout", "tls", "reply",
			"auth", "protocol"),
		sessions:  vec("sessions_total", "Sessions opened, by TLS version.", "tls", "none", "TLS1.2", "TLS1.3"),
		brokenTLS: one("broken_tls_total", "Hosts whose TLS failed and that are spoken to in clear for a day."),
		suspensions: vec("suspensions_total", "Pauses of a site.", "cause", causeUnreachable, causeThrottled, causeAuth,
			causeDNS),
		suspended: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "relayd_delivery_suspended_sites",
			Help: "Sites that failed last time and were not reached since.",
		}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "relayd_delivery_connections",
			Help: "Outgoing connections.",
		}, []string{"state"}),
		octets: one("sent_bytes_total", "Octets of messages that were delivered."),
		wait: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "relayd_delivery_wait_seconds",
			Help:    "Time from acceptance to delivery.",
			Buckets: []float64{.01, .05, .1, .5, 1, 5, 30, 60, 300, 1800, 7200, 21600, 86400},
		}, []string{"class"}),
		transaction: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "relayd_delivery_transaction_seconds",
			Help: "Time of one transaction, connecting included.", Buckets: []float64{.001, .005, .01, .05, .1, .5, 1, 5, 30, 120, 600},
		}),
		notices: vec("notices_total", "Notices to senders.", "result", "sent", "delayed", "relayed", "double_bounce", "not_wanted",
			"failed"),
		authRefused: one("auth_refused_total", "Refusals of our credentials by a smarthost."),
		panics:      one("panics_total", "Attempts that ended in a panic."),
		settleFails: one("settle_failures_total", "Failed tries to make results durable."),
	}
	for _, state := range []string{"active", "idle"} {
		m.connections.WithLabelValues(state)
	}
	for _, c := range []spool.Class{spool.Urgent, spool.Transactional, spool.Bulk} {
		m.wait.WithLabelValues(className(c))
	}
	if reg != nil {
		reg.MustRegister(m.results, m.inDoubt, m.connects, m.sessions, m.brokenTLS, m.suspensions, m.suspended, m.connections,
			m.octets, m.wait, m.transaction, m.notices, m.authRefused, m.panics, m.settleFails)
	}
	return m
}

func (m *metrics) opened(version string) {
	if version != "TLS1.2" && version != "TLS1.3" {
		version = "none"
	}
	m.connects.WithLabelValues("opened").Inc()
	m.sessions.WithLabelValues(version).Inc()
}

func className(c spool.Class) string {
	switch c {
	case spool.Urgent:
		return "urgent"
	case spool.Transactional:
		return "transactional"
	}
	return "bulk"
}
