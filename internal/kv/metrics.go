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

	checkpoints       *prometheus.CounterVec
	checkpointSeconds prometheus.Histogram
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
	m.checkpoints = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "relayd_kv_checkpoints_total", Help: "Times that the journal was brought into the store file.",
	}, []string{"result"})
	m.checkpointSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "relayd_kv_checkpoint_seconds", Help: "Time of one checkpoint.",
		Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
	})
	for _, result := range []string{"ok", "error"} {
		m.commits.WithLabelValues(result)
		m.checkpoints.WithLabelValues(result)
	}
	if reg != nil {
		reg.MustRegister(m.commits, m.seconds, m.updates, m.bytes, m.checkpoints, m.checkpointSeconds)
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

func (m *Metrics) checkpoint(took time.Duration, err error) {
	if m == nil {
		return
	}
	if err != nil {
		m.checkpoints.WithLabelValues("error").Inc()
		return
	}
	m.checkpoints.WithLabelValues("ok").Inc()
	m.checkpointSeconds.Observe(took.Seconds())
}
