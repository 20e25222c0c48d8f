package campaign

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"relayd/internal/api"
	"relayd/internal/intake"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// maxInline bounds the recipients in the request itself; more are uploaded.
const maxInline = 10_000

// Also runs in the transaction that stores a campaign, with the answer that the caller gets: an idempotency key becomes
// durable with what it is the key of. It may run more than once.
type Also func(tx kv.Tx, c api.Campaign) error

// Create checks a campaign in all its parts and stores it with its inline recipients, durably and at once or not at all.
// With req.Start it is started too, or refused and not stored. A refusal is an *Invalid.
func (s *Service) Create(ctx context.Context, account string, req *api.CreateCampaign, also ...Also) (api.Campaign, error) {
	return s.create(ctx, mail.NewQueueID(s.now()), account, req, nil, also)
}

// create is Create with an ID, and with a schedule in place of a start.
func (s *Service) create(
	ctx context.Context, id mail.QueueID, account string, req *api.CreateCampaign, sc *schedule, also []Also,
) (api.Campaign, error) {
	if account == "" {
		account = "default"
	}
	d, err := s.plan(ctx, id, account, req)
	if err != nil {
		return api.Campaign{}, err
	}
	r, c := d.record, d.composition
	if req.Start || sc != nil {
		total := int64(len(d.batch))
		if r.Audience != nil {
			total++
		}
		if err := s.ready(r, c, total); err != nil {
			return api.Campaign{}, err
		}
	}
	content, err := encodeContent(d.request)
	if err != nil {
		return api.Campaign{}, err
	}
	var sum added
	var out api.Campaign
	err = s.db.Update(ctx, func(tx kv.Tx) error {
		r.Revision = 0
		if r.Chunks, err = putContent(tx, id, content); err != nil {
			return err
		}
		if sum, err = putRecipients(tx, id, d.batch); err != nil {
			return err
		}
		if err := s.change(tx, id, func(t *tally) { t.total = sum.total }); err != nil {
			return err
		}
		if err := tx.Put(tableAccount, append(append([]byte(account), 0), id[:]...), []byte{recordVersion}); err != nil {
			return fmt.Errorf("index campaign: %w", err)
		}
		if err := s.launch(tx, r, req.Start, sc); err != nil {
			return err
		}
		if err := r.put(tx); err != nil {
			return err
		}
		out = r.api(sum.total)
		for _, fn := range also {
			if err := fn(tx, out); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return api.Campaign{}, fmt.Errorf("create campaign: %w", err)
	}
	s.follow(r)
	s.log.Info("campaign.created", "campaign", formatID(id), "account", account, "count", sum.total)
	return out, nil
}

// launch sets a new record's state: draft, or what start or a schedule asks for.
func (s *Service) launch(tx kv.Tx, r *record, start bool, sc *schedule) error {
	switch {
	case sc != nil:
		r.State, r.Schedule = Scheduled, sc
		return s.tell(tx, r, "campaign.scheduled")
	case start && r.Audience != nil:
		r.State, r.Cut = Preparing, s.now().UTC()
		return nil
	case start:
		if err := s.begin(tx, r); err != nil {
			return err
		}
		return s.tell(tx, r, "campaign.started")
	}
	return nil
}

// planned is a request that was checked in all its parts.
type planned struct {
	request     *api.CreateCampaign // with the content of the template that it names
	record      *record
	composition *composition
	batch       []recipient
}

func (s *Service) plan(ctx context.Context, id mail.QueueID, account string, req *api.CreateCampaign) (*planned, error) {
	bad := &Invalid{}
	send := s.sendOf(req.Send, req.Retry, req.TTLSeconds, bad)
	guards := guardsOf(req.Guards, bad)
	s.checkRequest(account, req, bad)
	m, err := s.findAudience(ctx, account, req.Audience, bad)
	if err != nil {
		return nil, err
	}
	if err := bad.orNil(); err != nil {
		return nil, err
	}
	if req, err = s.withTemplate(ctx, account, req); err != nil {
		return nil, err
	}
	lawful, err := s.lawful(ctx, account, req)
	if err != nil {
		return nil, err
	}
	c, err := newComposition(id, account, lawful, s.cfg.Hostname, s.cfg.PublicURL)
	if err != nil {
		return nil, err
	}
	batch, err := s.inline(c, req)
	if err != nil {
		return nil, err
	}
	r := &record{
		ID: c.id, Account: c.account, Name: req.Name, From: req.From, Subject: mail.CleanText(lawful.Template.Subject, 200),
		Stream: cmp.Or(req.Stream, defaultStream), State: Draft, Tags: req.Tags, Variables: c.variablesUsed(),
		Warnings: c.warnings, Reverse: c.reverse, Audience: req.Audience, Members: m, Send: send, Guards: guards, Created: s.now().UTC(),
	}
	return &planned{req, r, c, batch}, nil
}

// lawful returns the request with what the account's rules put into it.
func (s *Service) lawful(ctx context.Context, account string, req *api.CreateCampaign) (*api.CreateCampaign, error) {
	var r *rules
	err := s.db.View(ctx, func(tx kv.Tx) (err error) {
		r, err = getRules(tx, account)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := *req
	r.apply(&out)
	return &out, nil
}

// checkRequest checks what does not concern the message itself.
func (s *Service) checkRequest(account string, req *api.CreateCampaign, bad *Invalid) {
	if len(req.Recipients) > maxInline {
		bad.add("/recipients", api.CodeInvalidParameter, "%d recipients in one request, more than %d: upload them to /v1/campaigns/{id}/recipients", len(req.Recipients), maxInline)
	}
	for pointer, wanted := range map[string]bool{"/tracking/opens": req.Tracking.Opens, "/tracking/clicks": req.Tracking.Clicks} {
		if wanted {
			bad.add(pointer, api.CodeInvalidParameter, "relayd does not watch recipients: it counts neither opened messages nor followed links")
		}
	}
	for pointer, address := range map[string]string{"/from/email": req.From.Email, "/return_path": req.ReturnPath} {
		if p, err := parseAddress(address); err == nil && !s.mayUse(account, p.Domain) {
			bad.add(pointer, api.CodeFromNotVerified, "%s is not a sender domain of this account: run relayctl domain add %s", p.Domain, p.Domain)
		}
	}
	if p, err := parseAddress(req.From.Email); err == nil && checkHeaderText(req.From.Name) == nil {
		if err := intake.CheckDisplayName(req.From.Name, p.Domain); err != nil {
			bad.add("/from/name", api.CodeFromNotVerified, "%s", err)
		}
	}
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

// begin makes a record that of a running campaign. With its first start the account's rules are fixed, and guards count
// from now on.
func (s *Service) begin(tx kv.Tx, r *record) error {
	r.State, r.Reason, r.Detail = Running, "", ""
	if !r.Started.IsZero() {
		return s.rebase(tx, r)
	}
	rules, err := getRules(tx, r.Account)
	if err != nil {
		return err
	}
	r.Rules, r.Started = rules, s.now().UTC()
	return nil
}

// lacks gathers what recipients lack for a template, by variable.
type lacks struct {
	c       *composition
	always  bool // no recipient can lack anything
	seen    int64
	without int64 // of them, those that lack something
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

// see checks one recipient, and tells whether it lacks nothing.
func (l *lacks) see(to mail.Path, attributes []attribute, pointer string) (whole bool) {
	l.seen++
	if l.always {
		return true
	}
	if len(l.names) < maxAttributes {
		for _, a := range attributes {
			l.names[a.name] = true
		}
	}
	missing, err := l.c.check(&contact{address: to.String(), attributes: attributes, system: system{messageID: "x@y"}})
	if len(missing) > 0 {
		l.without++
	}
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
	return err == nil && len(missing) == 0
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

// tolerated tells that a campaign starts although recipients lack variables.
func (l *lacks) tolerated() bool { return l.c.skip || l.c.scope.blank }

// tell adds one error per variable, unless that is tolerated, and per other reason.
func (l *lacks) tell(bad *Invalid) {
	if l.c.skip && l.without > 0 && l.without == l.seen {
		bad.add("/on_missing", api.CodeAudienceEmpty, "every recipient lacks %s and would be left out", strings.Join(sortedKeys(l.missing), ", "))
	}
	known := append(sortedKeys(l.names), reservedNames()...)
	known = append(known, sortedKeys(l.c.scope.data)...)
	for _, name := range sortedKeys(l.missing) {
		if l.tolerated() {
			break
		}
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
