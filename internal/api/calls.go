package api

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// List says which part of a list is wanted.
type List struct {
	Limit  int    // 0: DefaultLimit
	Cursor string // of the page before, "" for the first
}

func (l List) values() url.Values {
	v := url.Values{}
	if l.Limit > 0 {
		v.Set("limit", strconv.Itoa(l.Limit))
	}
	setIf(v, "cursor", l.Cursor)
	return v
}

func setIf(v url.Values, name, value string) {
	if value != "" {
		v.Set(name, value)
	}
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (T, error) {
	var out T
	err := c.Do(ctx, http.MethodGet, path, query, nil, &out)
	return out, err
}

func post[T any](ctx context.Context, c *Client, path string, in any, opts ...Option) (T, error) {
	var out T
	err := c.Do(ctx, http.MethodPost, path, nil, in, &out, opts...)
	return out, err
}

// Version asks who answers.
func (c *Client) Version(ctx context.Context) (Version, error) {
	return get[Version](ctx, c, "/v1/version", nil)
}

// Queue lists envelopes that wait.
func (c *Client) Queue(ctx context.Context, s QueueSelector, l List) (Page[QueueItem], error) {
	v := l.values()
	for name, value := range map[string]string{
		"account": s.Account, "message": s.Message, "stream": s.Stream, "campaign": s.Campaign, "domain": s.Domain,
		"from": s.From, "to": s.To, "state": s.State, "class": s.Class, "reply": s.Reply, "query": s.Query, "site": s.Site,
	} {
		setIf(v, name, value)
	}
	if s.OlderThanSeconds > 0 {
		v.Set("older_than_seconds", strconv.FormatInt(s.OlderThanSeconds, 10))
	}
	return get[Page[QueueItem]](ctx, c, "/v1/queue", v)
}

// QueueMessage shows one message by its queue ID or by an envelope ID.
func (c *Client) QueueMessage(ctx context.Context, id string) (QueueMessage, error) {
	return get[QueueMessage](ctx, c, "/v1/queue/"+url.PathEscape(id), nil)
}

// QueueWhy says what the envelopes of a message wait for, by its queue ID or by an envelope ID.
func (c *Client) QueueWhy(ctx context.Context, id string) (QueueWhy, error) {
	return get[QueueWhy](ctx, c, "/v1/queue/"+url.PathEscape(id)+"/why", nil)
}

// History lists final outcomes, those settled last first.
func (c *Client) History(ctx context.Context, q HistoryQuery, l List) (Page[QueueItem], error) {
	v := l.values()
	setIf(v, "to", q.To)
	setIf(v, "message_id", q.MessageID)
	setIf(v, "id", q.ID)
	setIf(v, "account", q.Account)
	return get[Page[QueueItem]](ctx, c, "/v1/history", v)
}

// Backup streams a backup of the data directory, a tar file, to w and returns its length. Admin socket only.
func (c *Client) Backup(ctx context.Context, w io.Writer) (int64, error) {
	return c.Download(ctx, "/v1/backup", nil, w)
}

// QueueStats counts; queues and sites are how many of the largest queues and sites are listed.
func (c *Client) QueueStats(ctx context.Context, queues, sites int) (QueueStats, error) {
	v := url.Values{}
	if queues > 0 {
		v.Set("queues", strconv.Itoa(queues))
	}
	if sites > 0 {
		v.Set("sites", strconv.Itoa(sites))
	}
	return get[QueueStats](ctx, c, "/v1/queue/stats", v)
}

// QueueAct holds, releases, retries or fails envelopes.
func (c *Client) QueueAct(ctx context.Context, a QueueAction) (QueueActionResult, error) {
	return post[QueueActionResult](ctx, c, "/v1/queue/actions", a)
}

// Suppressions lists the suppression list. account is for callers with rights on all, "" for the caller's own.
func (c *Client) Suppressions(ctx context.Context, account string, l List) (Page[Suppression], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Suppression]](ctx, c, "/v1/suppressions", v)
}

// AddSuppression adds one entry.
func (c *Client) AddSuppression(ctx context.Context, s Suppression) (SuppressionAdded, error) {
	return post[SuppressionAdded](ctx, c, "/v1/suppressions", s)
}

// CheckSuppression tells what the list says of one address.
func (c *Client) CheckSuppression(ctx context.Context, account, email string) (SuppressionCheck, error) {
	v := url.Values{}
	setIf(v, "account", account)
	return get[SuppressionCheck](ctx, c, "/v1/suppressions/"+url.PathEscape(email), v)
}

// RemoveSuppression removes the entries of one address in a scope, in all scopes for "".
func (c *Client) RemoveSuppression(ctx context.Context, account, email, scope string) (SuppressionRemoved, error) {
	v := url.Values{}
	setIf(v, "account", account)
	setIf(v, "scope", scope)
	var out SuppressionRemoved
	err := c.Do(ctx, http.MethodDelete, "/v1/suppressions/"+url.PathEscape(email), v, nil, &out)
	return out, err
}

// ImportSuppressions streams a CSV ("text/csv") or JSON lines ("application/x-ndjson") upload.
func (c *Client) ImportSuppressions(ctx context.Context, account, contentType string, body io.Reader) (SuppressionImport, error) {
	v := url.Values{}
	setIf(v, "account", account)
	var out SuppressionImport
	err := c.Upload(ctx, "/v1/suppressions/import", v, contentType, body, &out)
	return out, err
}

// ExportSuppressions streams the whole list to w; format is "csv" or "jsonl".
func (c *Client) ExportSuppressions(ctx context.Context, account, format string, w io.Writer) (int64, error) {
	v := url.Values{}
	setIf(v, "account", account)
	setIf(v, "format", format)
	return c.Download(ctx, "/v1/suppressions/export", v, w)
}

// Credentials lists the SMTP credentials of an account.
func (c *Client) Credentials(ctx context.Context, account string, l List) (Page[Credential], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Credential]](ctx, c, "/v1/credentials", v)
}

// CreateCredential makes one; its password is in this answer only.
func (c *Client) CreateCredential(ctx context.Context, in CreateCredential) (Credential, error) {
	return post[Credential](ctx, c, "/v1/credentials", in)
}

// RevokeCredential removes one at once.
func (c *Client) RevokeCredential(ctx context.Context, username string) error {
	return c.Do(ctx, http.MethodDelete, "/v1/credentials/"+url.PathEscape(username), nil, nil, nil)
}

// Keys lists the API keys of an account.
func (c *Client) Keys(ctx context.Context, account string, l List) (Page[Key], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Key]](ctx, c, "/v1/keys", v)
}

// CreateKey makes one; its token is in this answer only.
func (c *Client) CreateKey(ctx context.Context, in CreateKey) (Key, error) {
	return post[Key](ctx, c, "/v1/keys", in)
}

// RevokeKey removes one at once.
func (c *Client) RevokeKey(ctx context.Context, id string) error {
	return c.Do(ctx, http.MethodDelete, "/v1/keys/"+url.PathEscape(id), nil, nil, nil)
}

// Domains lists the sender domains of an account.
func (c *Client) Domains(ctx context.Context, account string, l List) (Page[Domain], error) {
	v := l.values()
	setIf(v, "account", account)
	return get[Page[Domain]](ctx, c, "/v1/domains", v)
}

// CreateDomain adds a domain and makes its DKIM keys.
func (c *Client) CreateDomain(ctx context.Context, in CreateDomain) (Domain, error) {
	return post[Domain](ctx, c, "/v1/domains", in)
}

// Domain shows one.
func (c *Client) Domain(ctx context.Context, name string) (Domain, error) {
	return get[Domain](ctx, c, "/v1/domains/"+url.PathEscape(name), nil)
}

// VerifyDomain asks DNS about every record that the domain needs.
func (c *Client) VerifyDomain(ctx context.Context, name string) (Domain, error) {
	return post[Domain](ctx, c, "/v1/domains/"+url.PathEscape(name)+"/verify", nil)
}

// RotateDKIM makes new, pending keys.
func (c *Client) RotateDKIM(ctx context.Context, name string) (Domain, error) {
	return post[Domain](ctx, c, "/v1/domains/"+url.PathEscape(name)+"/dkim/rotate", nil)
}

// ActivateDKIM makes a pending key sign in place of the active one of its algorithm.
func (c *Client) ActivateDKIM(ctx context.Context, name, selector string) (Domain, error) {
	return post[Domain](ctx, c, "/v1/domains/"+url.PathEscape(name)+"/dkim/activate", ActivateKey{selector})
}

// EventFilter selects events; empty fields select all.
type EventFilter struct {
	Account  string
	Type     string // prefix, such as "message." or "message.bounced"
	Envelope string // queue ID or envelope ID
	Campaign string
	Since    time.Time
	Until    time.Time
}

// Events lists the event log, oldest first.
func (c *Client) Events(ctx context.Context, f EventFilter, l List) (Page[Event], error) {
	v := l.values()
	for name, value := range map[string]string{"account": f.Account, "type": f.Type, "envelope": f.Envelope, "campaign": f.Campaign} {
		setIf(v, name, value)
	}
	if !f.Since.IsZero() {
		v.Set("since", f.Since.UTC().Format(time.RFC3339Nano))
	}
	if !f.Until.IsZero() {
		v.Set("until", f.Until.UTC().Format(time.RFC3339Nano))
	}
	return get[Page[Event]](ctx, c, "/v1/events", v)
}

// SendMessage hands in one message. key, unless empty, makes the call safe to repeat.
func (c *Client) SendMessage(ctx context.Context, m SendMessage, key string) (MessageQueued, error) {
	var opts []Option
	if key != "" {
		opts = append(opts, IdempotencyKey(key))
	}
	return post[MessageQueued](ctx, c, "/v1/messages", m, opts...)
}
