package source

import (
	"github.com/prometheus/client_golang/prometheus"

	"relayd/internal/api"
)

type metrics struct {
	runs    *prometheus.CounterVec
	rows    *prometheus.CounterVec
	seconds prometheus.Histogram
	running prometheus.Gauge
	failing prometheus.Gauge
}

// newMetrics makes the package's metrics, and registers them where reg is not nil.
func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "relayd", Subsystem: "source", Name: "runs_total", Help: "Runs of sources that ended, by how.",
		}, []string{"result"}),
		rows: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "relayd", Subsystem: "source", Name: "rows_total", Help: "Rows of sources, by what became of them.",
		}, []string{"result"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "relayd", Subsystem: "source", Name: "run_seconds", Help: "Time of one run.",
			Buckets: []float64{0.05, 0.2, 1, 5, 20, 60, 300, 1200, 3600},
		}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "relayd", Subsystem: "source", Name: "running_count", Help: "Sources that are being read.",
		}),
		failing: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "relayd", Subsystem: "source", Name: "failing_count", Help: "Sources whose last run failed.",
		}),
	}
	for _, r := range []string{"completed", "failed", "interrupted"} {
		m.runs.WithLabelValues(r)
	}
	for _, r := range results {
		if r != "read" {
			m.rows.WithLabelValues(r)
		}
	}
	if reg != nil {
		reg.MustRegister(m.runs, m.rows, m.seconds, m.running, m.failing)
	}
	return m
}

// add counts what a run did since it was before.
func (m *metrics) add(before, now *api.SourceRun) {
	old := tally(before)
	for i, n := range tally(now) {
		if results[i] != "read" {
			m.rows.WithLabelValues(results[i]).Add(float64(*n - *old[i]))
		}
	}
}
