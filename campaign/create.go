package campaign

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// maxInline bounds the recipients in the request itself; more are uploaded.
const maxInline = 10_000

// maxRetry bounds what a campaign may ask of the retry policy.
const (
	maxAttempts = 20
	maxInterval = 24 * 3600
	maxBackoff  = 100
	maxTTL      = 30 * 24 * 3600
)

// Create checks a campaign in all its parts and stores it with its inline recipients, durably and at once or not at all.
// With req.Start it is started too, or refused and not stored. A refusal is an *Invalid.
func (s *Service) Create(ctx context.Context, account string, req *api.CreateCampaign) (api.Campaign, error) {
	id := mail.NewQueueID(s.now())
	if account == "" {
		account = "default"
	}
	if err := s.checkRequest(account, req); err != nil {
		return api.Campaign{}, err
	}
	req, err := s.withTemplate(ctx, account, req)
	if err != nil {
		return api.Campaign{}, err
	}
	c, err := newComposition(id, account, req, s.cfg.Hostname, s.cfg.PublicURL)
	if err != nil {
		return api.Campaign{}, err
	}
	batch, err := s.inline(c, req)
	if err != nil {
		return api.Campaign{}, err
	}
	r := s.newRecord(c, req)
	if req.Start {
		if err := s.ready(r, c, int64(len(batch))); err != nil {
			return api.Campaign{}, err
		}
	}
	content, err := encodeContent(req)
	if err != nil {
		return api.Campaign{}, err
	}
	var sum added
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		if r.Chunks, err = putContent(tx, id, content); err != nil {
			return err
		}
		if sum, err = putRecipients(tx, id, batch); err != nil {
			return err
		}
		if err := s.change(tx, id, func(t *tally) { t.total = sum.total }); err != nil {
			return err
		}
		if err := tx.Put(tableAccount, append(append([]byte(account), 0), id[:]...), []byte{recordVersion}); err != nil {
			return fmt.Errorf("index campaign: %w", err)
		}
		if req.Start {
			s.begin(r)
			if err := s.tell(tx, r, "campaign.started"); err != nil {
				return err
			}
		}
		return r.put(tx)
	})
	if err != nil {
		return api.Campaign{}, fmt.Errorf("create campaign: %w", err)
	}
	s.follow(r)
	s.log.Info("campaign.created", "campaign", formatID(id), "account", account, "count", sum.total)
	return r.api(sum.total), nil
}

func (s *Service) newRecord(c *composition, req *api.CreateCampaign) *record {
	r := &record{
		ID: c.id, Account: c.account, Name: req.Name, From: req.From, Subject: mail.CleanText(req.Template.Subject, 200),
		Stream: req.Stream, State: Draft, Tags: req.Tags, Variables: c.variablesUsed(), Warnings: c.warnings, Reverse: c.reverse,
		TTL: time.Duration(req.TTLSeconds) * time.Second, Retry: req.Retry, Created: s.now().UTC(),
	}
	if r.Stream == "" {
		r.Stream = defaultStream
	}
	if r.TTL == 0 {
		r.TTL = s.cfg.TTL
	}
	return r
}

// checkRequest checks what does not concern the message itself.
func (s *Service) checkRequest(account string, req *api.CreateCampaign) error {
	bad := &Invalid{}
	if r := req.Retry; r != nil {
		if r.MaxAttempts < 1 || r.MaxAttempts > maxAttempts {
			bad.add("/retry/max_attempts", api.CodeInvalidParameter, "%d is not between 1 and %d", r.MaxAttempts, maxAttempts)
		}
		if r.IntervalSeconds < 1 || r.IntervalSeconds > maxInterval {
			bad.add("/retry/interval_seconds", api.CodeInvalidParameter, "%d is not between 1 and %d", r.IntervalSeconds, maxInterval)
		}
		if !(r.BackoffRate >= 1 && r.BackoffRate <= maxBackoff) {
			bad.add("/retry/backoff_rate", api.CodeInvalidParameter, "%g is not between 1 and %d", r.BackoffRate, maxBackoff)
		}
	}
	if req.TTLSeconds < 0 || req.TTLSeconds > maxTTL {
		bad.add("/ttl_seconds", api.CodeInvalidParameter, "%d is not between 1 and %d", req.TTLSeconds, maxTTL)
	}
	if len(req.Recipients) > maxInline {
		bad.add("/recipients", api.CodeInvalidParameter, "%d recipients in one request, more than %d: upload them to /v1/campaigns/{id}/recipients", len(req.Recipients), maxInline)
	}
	for pointer, address := range map[string]string{"/from/email": req.From.Email, "/return_path": req.ReturnPath} {
		if p, err := parseAddress(address); err == nil && !s.mayUse(account, p.Domain) {
			bad.add(pointer, api.CodeFromNotVerified, "%s is not a sender domain of this account: run relayctl domain add %s", p.Domain, p.Domain)
		}
	}
	return bad.orNil()
}

func (s *Service) mayUse(account, domain string) bool {
	d, ok := s.domains.Domain(domain)
	return ok && d.Account == account
}

// inline checks the recipients of the request. What one of them lacks is told before anything is stored.
func (s *Service) inline(c *composition, req *api.CreateCampaign) ([]recipient, error) {
	bad := &Invalid{}
	batch := make([]recipient, 0, len(req.Recipients))
	lack := newLacks(c)
	for i := range req.Recipients {
		in := &req.Recipients[i]
		pointer := fmt.Sprintf("/recipients/%d", i)
		to, err := parseAddress(in.Email)
		if err != nil {
			bad.add(pointer+"/email", api.CodeRecipientInvalid, "%q: %s", clip(in.Email, 100), err)
			continue
		}
		attributes, err := attributesOf(in.Attributes)
		if err != nil {
			bad.add(pointer+"/attributes", api.CodeRecipientInvalid, "%s", err)
			continue
		}
		lack.see(to, attributes, pointer)
		batch = append(batch, recipient{to: to, attributes: attributes})
	}
	lack.tell(bad)
	return batch, bad.orNil()
}

// ready tells why a campaign cannot start.
func (s *Service) ready(r *record, c *composition, total int64) error {
	bad := &Invalid{}
	if total == 0 {
		bad.add("/recipients", api.CodeAudienceEmpty, "the campaign has no recipients")
	}
	if s.cfg.PublicURL == "" {
		bad.add("", "public_url_missing", "unsubscribe links need a public address: set admin.public_url in the configuration, such as https://mail.%s", c.from.Domain)
	}
	for _, domain := range []string{c.from.Domain, r.Reverse.Domain} {
		if !s.mayUse(r.Account, domain) {
			bad.add("/from/email", api.CodeFromNotVerified, "%s is not a sender domain of this account: run relayctl domain add %s", domain, domain)
			break
		}
	}
	if d, ok := s.domains.Domain(c.from.Domain); ok && d.Sign != "none" && len(s.keys.Keys(c.from.Domain)) == 0 {
		bad.add("/from/email", api.CodeDomainNotReady, "%s has no DKIM key: run relayctl domain add %s", c.from.Domain, c.from.Domain)
	}
	return bad.orNil()
}

// begin makes a record that of a running campaign.
func (s *Service) begin(r *record) {
	r.State, r.Reason = Running, ""
	if r.Started.IsZero() {
		r.Started = s.now().UTC()
	}
}

// lacks gathers what recipients lack for a template, by variable.
type lacks struct {
	c       *composition
	always  bool // no recipient can lack anything
	seen    int64
	missing map[string]*lack
	others  map[string]*lack // other reasons why a message could not be made
	names   map[string]bool  // attributes that recipients have
}

type lack struct {
	count   int64
	samples []string
	pointer string
	places  []string
	code    string
}

const (
	maxSamples = 3
	maxPlaces  = 5
	maxLacks   = 50
)

func newLacks(c *composition) *lacks {
	return &lacks{c: c, always: !c.needsContact(), missing: map[string]*lack{}, others: map[string]*lack{}, names: map[string]bool{}}
}

// needsContact tells whether making a message can fail for some contacts.
func (c *composition) needsContact() bool {
	for _, u := range c.uses() {
		if u.root == "" || !u.system && !u.constant {
			return true
		}
	}
	for _, u := range c.subject.uses {
		if !u.system {
			return true // a contact's value goes before the campaign's, and may hold a line break
		}
	}
	return false
}

// see checks one recipient.
func (l *lacks) see(to mail.Path, attributes []attribute, pointer string) {
	l.seen++
	if l.always {
		return
	}
	if len(l.names) < maxAttributes {
		for _, a := range attributes {
			l.names[a.name] = true
		}
	}
	missing, err := l.c.check(&contact{address: to.String(), attributes: attributes, system: system{messageID: "x@y"}})
	told := map[string]bool{}
	for _, u := range missing {
		if !told[u.name] {
			told[u.name] = true
			item := l.item(l.missing, u.name, to, pointer)
			if item != nil && len(item.places) == 0 {
				item.places = l.places(u)
			}
		}
	}
	if err != nil {
		code := "render_failed"
		if errors.Is(err, errHeaderControl) {
			code = "header_line_break"
		}
		if item := l.item(l.others, err.Error(), to, pointer); item != nil {
			item.code = code
		}
	}
}

func (l *lacks) item(m map[string]*lack, name string, to mail.Path, pointer string) *lack {
	item := m[name]
	if item == nil {
		if len(m) >= maxLacks {
			return nil
		}
		item = &lack{pointer: pointer}
		m[name] = item
	}
	item.count++
	if len(item.samples) < maxSamples {
		item.samples = append(item.samples, to.String())
	}
	return item
}

func (l *lacks) places(u *use) []string {
	if u.root == "" {
		return []string{u.place()}
	}
	var list []string
	for _, other := range l.c.uses() {
		if other.name == u.name && len(list) < maxPlaces {
			list = append(list, other.place())
		}
	}
	return list
}

// tell adds one error per variable and per other reason.
func (l *lacks) tell(bad *Invalid) {
	known := append(sortedKeys(l.names), reservedNames()...)
	known = append(known, sortedKeys(l.c.scope.data)...)
	for _, name := range sortedKeys(l.missing) {
		item := l.missing[name]
		detail := fmt.Sprintf("the template needs %q (%s), and %d of %d recipients have none, such as %s", name,
			strings.Join(item.places, ", "), item.count, l.seen, strings.Join(item.samples, ", "))
		if near := nearest(name, known); near != "" {
			detail += fmt.Sprintf("; did you mean %q?", near)
		}
		pointer := "/data/" + escapePointer(name)
		if item.pointer != "" && item.count < l.seen {
			pointer = item.pointer + "/attributes/" + escapePointer(name)
		}
		bad.add(pointer, api.CodeTemplateVariable, "%s", detail)
	}
	for _, reason := range sortedKeys(l.others) {
		item := l.others[reason]
		pointer := item.pointer
		if pointer == "" {
			pointer = "/recipients"
		}
		bad.add(pointer, item.code, "%s: %d of %d recipients, such as %s", reason, item.count, l.seen, strings.Join(item.samples, ", "))
	}
}
