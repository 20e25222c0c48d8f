package resolver

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	queries  *prometheus.CounterVec
	cache    *prometheus.CounterVec
	mismatch prometheus.Counter
	seconds  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_resolver_queries_total",
			Help: "Questions asked of DNS servers, by record type and result.",
		}, []string{"type", "result"}),
		cache: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_resolver_lookups_total",
			Help: "Look-ups by where the answer came from: the cache, the same question under way, or a server.",
		}, []string{"source"}),
		mismatch: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_resolver_ignored_answers_total",
			Help: "Answers passed over because their identifier or question was not ours, or they could not be parsed.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "relayd_resolver_query_seconds",
			Help:    "Time from a question to its answer, with all retries.",
			Buckets: []float64{.001, .005, .02, .1, .5, 1, 3, 10, 30},
		}),
	}
	for _, t := range typeNames {
		for _, r := range []string{"ok", "nodata", "nxdomain", "temporary"} {
			m.queries.WithLabelValues(t, r)
		}
	}
	for _, s := range []string{"cache", "shared", "server"} {
		m.cache.WithLabelValues(s)
	}
	if reg != nil {
		reg.MustRegister(m.queries, m.cache, m.mismatch, m.seconds)
	}
	return m
}

func resultLabel(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, ErrNXDomain):
		return "nxdomain"
	case errors.Is(err, ErrNoData):
		return "nodata"
	}
	return "temporary"
}
