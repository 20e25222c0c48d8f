package api

import (
	"context"
	"net/url"
	"time"

	"relayd/internal/mail"
)

// Site is what delivery knows of one site (a set of MX hosts, or a smarthost) or of a provider over all its sites.
type Site struct {
	Name        string      `json:"name"` // the first MX host, a smarthost, or provider:NAME
	Kind        string      `json:"kind"` // site, smarthost or provider
	Provider    string      `json:"provider,omitempty"`
	Hosts       string      `json:"hosts,omitempty"` // by preference
	Sites       int         `json:"sites,omitempty"` // of a provider
	State       string      `json:"state"`           // active, idle, limited, paused (by relayd) or suspended (by an operator)
	Limit       string      `json:"limit,omitempty"` // why: suspended_by_operator, suspended, rate, pace, connections, window
	LimitedBy   string      `json:"limited_by,omitempty"`
	Until       time.Time   `json:"until,omitzero"`
	Connections int         `json:"connections"` // in use
	Idle        int         `json:"idle"`        // open and waiting for mail
	Window      int         `json:"window"`      // allowed now
	Ceiling     int         `json:"ceiling"`     // allowed at most
	Ready       int         `json:"ready"`       // transactions
	Leased      int         `json:"leased"`      // envelopes
	Queues      int         `json:"queues"`
	Speed       float64     `json:"messages_per_second"` // the last minute above all
	Pace        float64     `json:"pace,omitempty"`      // messages per second that are allowed since it complained
	Rate        string      `json:"rate,omitempty"`      // that is configured
	Messages    int         `json:"messages_per_connection,omitempty"`
	Failures    int         `json:"failures"` // pauses in a row
	Paused      time.Time   `json:"paused_at,omitzero"`
	Resume      time.Time   `json:"resume_at,omitzero"`
	Cause       string      `json:"cause,omitempty"` // of the pause: unreachable, throttled, auth
	LastReply   *mail.Reply `json:"last_reply,omitempty"`
	LastHost    string      `json:"last_host,omitempty"`
	Hold        *SiteHold   `json:"suspension,omitempty"`
	Used        time.Time   `json:"used_at,omitzero"`
}

// SiteHold is an operator's suspension.
type SiteHold struct {
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until,omitzero"` // absent: until it is resumed
	Who    string    `json:"who"`
	Reason string    `json:"reason,omitempty"`
}

// SiteSuspension asks that no mail goes to a site.
type SiteSuspension struct {
	Seconds int64  `json:"seconds,omitempty"` // 0: until it is resumed
	Reason  string `json:"reason,omitempty"`
}

// SiteResumption asks that mail goes to a site again.
type SiteResumption struct {
	Reason string `json:"reason,omitempty"`
}

// SiteChanged answers both.
type SiteChanged struct {
	Name    string    `json:"name"`
	Changed bool      `json:"changed"`
	Until   time.Time `json:"until,omitzero"`
}

// Sites lists sites and providers, those with the most mail first; state "" for all.
func (c *Client) Sites(ctx context.Context, state string, l List) (Page[Site], error) {
	v := l.values()
	setIf(v, "state", state)
	return get[Page[Site]](ctx, c, "/v1/sites", v)
}

// Site shows the sites of one name: several may begin with the same host.
func (c *Client) Site(ctx context.Context, name string) (Page[Site], error) {
	return get[Page[Site]](ctx, c, "/v1/sites/"+url.PathEscape(name), nil)
}

// SuspendSite keeps mail from a site or provider.
func (c *Client) SuspendSite(ctx context.Context, name string, s SiteSuspension) (SiteChanged, error) {
	return post[SiteChanged](ctx, c, "/v1/sites/"+url.PathEscape(name)+"/suspend", s)
}

// ResumeSite ends a suspension, and a pause of relayd's own.
func (c *Client) ResumeSite(ctx context.Context, name string, s SiteResumption) (SiteChanged, error) {
	return post[SiteChanged](ctx, c, "/v1/sites/"+url.PathEscape(name)+"/resume", s)
}
