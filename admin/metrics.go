package admin

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// otherRoute is the label of requests that meet no route.
const otherRoute = "other"

// metrics of this package. Labels are closed sets: routes of the table, status classes, forms.
type metrics struct {
	requests     *prometheus.CounterVec
	duration     prometheus.Histogram
	panics       prometheus.Counter
	authFailures prometheus.Counter
	unsubscribes *prometheus.CounterVec
}

// The forms of an unsubscribe request.
const (
	formOneClick = "one_click" // RFC 8058
	formEmpty    = "empty"     // a body without anything, taken for one-click
	formPage     = "page"      // our own page
	formOther    = "refused"
)

func newMetrics(reg prometheus.Registerer, routes []route, public []publicRoute) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_admin_requests_total",
			Help: "HTTP requests by route and class of the answer's status.",
		}, []string{"route", "class"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "relayd_admin_request_duration_seconds",
			Help:    "Time from the header of an HTTP request to the end of its answer.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10, 60},
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_admin_panics_total",
			Help: "HTTP requests whose handler panicked. Alert on any.",
		}),
		authFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "relayd_admin_auth_failures_total",
			Help: "API requests without a valid key.",
		}),
		unsubscribes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "relayd_admin_unsubscribe_requests_total",
			Help: "POST requests to unsubscribe links by the form of their body.",
		}, []string{"form"}),
	}
	names := []string{otherRoute}
	for _, r := range routes {
		names = append(names, r.pattern())
	}
	for _, p := range public {
		names = append(names, p.pattern)
	}
	for _, name := range names {
		for class := 2; class <= 5; class++ {
			m.requests.WithLabelValues(name, strconv.Itoa(class)+"xx")
		}
	}
	for _, form := range []string{formOneClick, formEmpty, formPage, formOther} {
		m.unsubscribes.WithLabelValues(form)
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.duration, m.panics, m.authFailures, m.unsubscribes)
	}
	return m
}

func (m *metrics) served(route string, status int, took time.Duration) {
	m.requests.WithLabelValues(route, strconv.Itoa(status/100)+"xx").Inc()
	m.duration.Observe(took.Seconds())
}
