package campaign

import (
	"math"
	"time"

	"relayd/internal/api"
)

// Bounds of what a campaign may ask for.
const (
	maxAttempts        = 20
	maxInterval        = 24 * 3600
	maxBackoff         = 100
	maxTTL             = 30 * 24 * 3600
	maxSpread          = 7 * 24 * 3600
	maxConcurrency     = 1000
	maxRate            = 100_000
	maxGrace           = 30 * 24 * 3600
	defaultConcurrency = 10
	defaultGrace       = 3600
)

// sendOf joins the options of a request with their short forms, checks them, and sets the defaults.
func (s *Service) sendOf(in api.CampaignSend, retry *api.CampaignRetry, ttl int64, bad *Invalid) api.CampaignSend {
	at := "/send"
	if retry != nil {
		if in.Retry != nil {
			bad.add("/retry", api.CodeInvalidParameter, "stands at /send/retry too")
		}
		in.Retry = retry
	}
	if ttl != 0 {
		if in.TTLSeconds != 0 && in.TTLSeconds != ttl {
			bad.add("/ttl_seconds", api.CodeInvalidParameter, "differs from /send/ttl_seconds")
		}
		in.TTLSeconds = ttl
	}
	if r := in.Retry; r != nil {
		p := at + "/retry"
		if retry != nil {
			p = "/retry"
		}
		if r.MaxAttempts < 1 || r.MaxAttempts > maxAttempts {
			bad.add(p+"/max_attempts", api.CodeInvalidParameter, "%d is not between 1 and %d", r.MaxAttempts, maxAttempts)
		}
		if r.IntervalSeconds < 1 || r.IntervalSeconds > maxInterval {
			bad.add(p+"/interval_seconds", api.CodeInvalidParameter, "%d is not between 1 and %d", r.IntervalSeconds, maxInterval)
		}
		if !(r.BackoffRate >= 1 && r.BackoffRate <= maxBackoff) {
			bad.add(p+"/backoff_rate", api.CodeInvalidParameter, "%g is not between 1 and %d", r.BackoffRate, maxBackoff)
		}
	}
	if in.TTLSeconds < 0 || in.TTLSeconds > maxTTL {
		p := at + "/ttl_seconds"
		if ttl != 0 {
			p = "/ttl_seconds"
		}
		bad.add(p, api.CodeInvalidParameter, "%d is not between 1 and %d", in.TTLSeconds, maxTTL)
	}
	if in.TTLSeconds == 0 {
		in.TTLSeconds = int64(s.cfg.TTL / time.Second)
	}
	if in.MaxConcurrency < 0 || in.MaxConcurrency > maxConcurrency {
		bad.add(at+"/max_concurrency", api.CodeInvalidParameter, "%d is not between 1 and %d", in.MaxConcurrency, maxConcurrency)
	}
	if in.MaxConcurrency == 0 {
		in.MaxConcurrency = defaultConcurrency
	}
	if r := in.MaxRatePerSecond; math.IsNaN(r) || r < 0 || r > maxRate || r > 0 && r < 1.0/3600 {
		bad.add(at+"/max_rate_per_second", api.CodeInvalidParameter, "%g is not between one an hour and %d a second", r, maxRate)
	}
	if in.SpreadSeconds < 0 || in.SpreadSeconds > maxSpread {
		bad.add(at+"/spread_seconds", api.CodeInvalidParameter, "%d is not between 0 and %d", in.SpreadSeconds, maxSpread)
	}
	if in.MisfireGraceSeconds == nil {
		grace := int64(defaultGrace)
		in.MisfireGraceSeconds = &grace
	}
	if g := *in.MisfireGraceSeconds; g < 0 || g > maxGrace {
		bad.add(at+"/misfire_grace_seconds", api.CodeInvalidParameter, "%d is not between 0 and %d", g, maxGrace)
	}
	return in
}

// expires is when a campaign's messages are given up: their lifetime after the last of them was to be sent.
func (r *record) expires() time.Time {
	from := r.Started
	if r.Again.After(from) {
		from = r.Again
	}
	if p := r.layout(); p.last.After(from) {
		from = p.last
	}
	return from.Add(time.Duration(r.Send.TTLSeconds) * time.Second)
}
