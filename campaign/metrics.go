package campaign

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	composed     prometheus.Counter
	failed       prometheus.Counter
	queued       prometheus.Counter
	imported     *prometheus.CounterVec
	unsubscribed prometheus.Counter
	paused       *prometheus.CounterVec
}

// newMetrics makes the package's metrics, and registers them where reg is not nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "relayd", Subsystem: "campaign", Name: name, Help: help})
	}
	m := &metrics{
		composed:     counter("messages_composed_total", "Messages rendered, assembled and signed."),
		failed:       counter("render_failures_total", "Messages that could not be rendered or signed."),
		queued:       counter("recipients_queued_total", "Recipients that fan-out turned into envelopes."),
		unsubscribed: counter("unsubscribes_total", "Mailboxes that unsubscribed through their link."),
		imported: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "relayd", Subsystem: "campaign", Name: "import_rows_total", Help: "Rows of uploads, by what became of them.",
		}, []string{"result"}),
	}
	m.paused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "relayd", Subsystem: "campaign", Name: "paused_total", Help: "Campaigns that relayd has paused, by the reason.",
	}, []string{"reason"})
	for _, reason := range []string{reasonMisfire, reasonQuota, reasonBounce, reasonComplaint, reasonDeferral} {
		m.paused.WithLabelValues(reason)
	}
	for _, result := range []string{"created", "duplicate", "skipped", "rejected"} {
		m.imported.WithLabelValues(result)
	}
	if reg != nil {
		reg.MustRegister(m.composed, m.failed, m.queued, m.unsubscribed, m.imported, m.paused)
	}
	return m
}
