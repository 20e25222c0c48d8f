package smtpd

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	open     *prometheus.GaugeVec
	sessions *prometheus.CounterVec
	rejected *prometheus.CounterVec
	messages *prometheus.CounterVec
	bytes    prometheus.Counter
	accept   prometheus.Histogram
	auth     *prometheus.CounterVec
	panics   prometheus.Counter
}

// newMetrics takes the labels of the listeners as kind and label.
func newMetrics(reg prometheus.Registerer, listeners []Listener) *metrics {
	m := &metrics{
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "relayd_smtpd_sessions_open", Help: "Open SMTP sessions by kind of listener and listener.",
		}, []string{"kind", "listener"}),
		sessions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_smtpd_sessions_total", Help: "SMTP sessions by kind of listener and listener.",
		}, []string{"kind", "listener"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_smtpd_connections_rejected_total", Help: "Connections over a limit, by limit.",
		}, []string{"reason"}),
		messages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_smtpd_messages_total", Help: "Messages after DATA or BDAT by kind of listener, listener and result.",
		}, []string{"kind", "listener", "result"}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_smtpd_accepted_bytes_total", Help: "Octets of accepted messages.",
		}),
		accept: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "relayd_smtpd_accept_seconds", Help: "Time from DATA, or the first BDAT, to the reply to its end.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 60},
		}),
		auth: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_smtpd_auth_total", Help: "AUTH commands by result.",
		}, []string{"result"}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_smtpd_panics_total", Help: "Sessions that ended in a panic: always a defect.",
		}),
	}
	for _, l := range listeners {
		m.open.WithLabelValues(l.Kind, l.label())
		m.sessions.WithLabelValues(l.Kind, l.label())
		for _, result := range []string{"accepted", "refused", "deferred"} {
			m.messages.WithLabelValues(l.Kind, l.label(), result)
		}
	}
	for _, reason := range []string{"connections", "connections_per_ip", "connections_per_account", "displaced", "proxy"} {
		m.rejected.WithLabelValues(reason)
	}
	for _, result := range []string{"ok", "failed", "malformed", "error"} {
		m.auth.WithLabelValues(result)
	}
	if reg != nil {
		reg.MustRegister(m.open, m.sessions, m.rejected, m.messages, m.bytes, m.accept, m.auth, m.panics)
	}
	return m
}
