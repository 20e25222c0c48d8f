package kv

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of the embedded engine. The nil pointer measures nothing.
type Metrics struct {
	commits *prometheus.CounterVec
	seconds prometheus.Histogram
	updates prometheus.Histogram
	bytes   prometheus.Counter
}

// NewMetrics registers the metrics of one store.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		commits: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_kv_commits_total", Help: "Group commits of the store.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "relayd_kv_commit_seconds", Help: "Time of one group commit, with the functions in it.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		updates: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "relayd_kv_commit_updates", Help: "Updates that shared one commit.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 11),
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_kv_written_bytes_total", Help: "Bytes of keys and values committed.",
		}),
	}
	m.commits.WithLabelValues("ok")
	m.commits.WithLabelValues("error")
	if reg != nil {
		reg.MustRegister(m.commits, m.seconds, m.updates, m.bytes)
	}
	return m
}

func (m *Metrics) observe(updates, bytes int, took time.Duration, err error) {
	if m == nil {
		return
	}
	if err != nil {
		m.commits.WithLabelValues("error").Inc()
		return
	}
	m.commits.WithLabelValues("ok").Inc()
	m.seconds.Observe(took.Seconds())
	m.updates.Observe(float64(updates))
	m.bytes.Add(float64(bytes))
}
