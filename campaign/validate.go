package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"relayd/internal/api"
	"relayd/internal/checklist"
	contacts "relayd/internal/contact"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
)

// perTransaction is what an estimate takes for one SMTP transaction where a campaign has no other bound.
const perTransaction = 500 * time.Millisecond

// validation is one look at all recipients of a campaign.
type validation struct {
	s      *Service
	r      *record
	c      *composition
	lack   *lacks
	out    api.CampaignCheck
	by     [len(providerNames)]int64
	sample *recipient // for the size of a message
}

// StartCheck is Validate for a campaign that Start would take; for others it is Start's *StateError.
func (s *Service) StartCheck(ctx context.Context, account, id string) (api.CampaignCheck, error) {
	r, err := s.read(ctx, account, id)
	if err != nil {
		return api.CampaignCheck{}, err
	}
	if !startable(r.State) {
		return api.CampaignCheck{}, &StateError{"start", r.State}
	}
	return s.Validate(ctx, account, id)
}

// startable tells the states in which Start does its work, or has done it.
func startable(state string) bool {
	switch state {
	case Draft, Scheduled, Preparing, Running:
		return true
	}
	return false
}

// Validate tells what would become of a campaign if it started now, and changes nothing. It reads all recipients.
func (s *Service) Validate(ctx context.Context, account, id string) (api.CampaignCheck, error) {
	v := &validation{s: s}
	v.out.Checks = []api.Check{}
	r, err := s.read(ctx, account, id)
	if err != nil {
		return v.out, err
	}
	v.r = r
	if v.c, err = s.compile(ctx, r); err != nil {
		bad, ok := errors.AsType[*Invalid](err)
		if !ok {
			return v.out, err
		}
		v.add("template", false, "%s", bad.Error())
		return v.out, nil
	}
	v.add("template", true, "")
	v.lack = newLacks(v.c)
	v.out.Warnings = v.c.warnings
	bad := &Invalid{}
	if _, err := s.findAudience(ctx, r.Account, r.Audience, bad); err != nil {
		return v.out, err
	}
	if err := bad.orNil(); err != nil {
		v.add("audience", false, "%s", err)
		return v.finish()
	}
	if err := v.uploaded(ctx); err != nil {
		return v.out, err
	}
	if r.Audience != nil && !r.Ready {
		if err := v.members(ctx); err != nil {
			return v.out, err
		}
	}
	return v.finish()
}

func (v *validation) add(id string, ok bool, format string, args ...any) *api.Check {
	check := api.Check{ID: id, OK: ok}
	if !ok {
		check.Detail = fmt.Sprintf(format, args...)
	}
	v.out.Checks = append(v.out.Checks, check)
	return &v.out.Checks[len(v.out.Checks)-1]
}

// uploaded looks at the recipients that stand with the campaign.
func (v *validation) uploaded(ctx context.Context) error {
	for from, more := uint64(0), true; more; {
		err := v.s.db.View(ctx, func(tx kv.Tx) error {
			rows, err := scanRecipients(tx, v.r.ID, from, examinePage)
			if err != nil {
				return err
			}
			more = len(rows) == examinePage
			batch := make([]recipient, 0, len(rows))
			for i := range rows {
				from = rows[i].n + 1
				rec := rows[i].recipient
				if rec.unsubscribed {
					continue
				}
				if rec.attributes, err = readAttributes(make([]attribute, 0, 8), rows[i].data); err != nil {
					return err
				}
				batch = append(batch, rec)
			}
			return v.look(tx, batch)
		})
		if err != nil {
			return fmt.Errorf("validate campaign: %w", err)
		}
	}
	return nil
}

// members looks at the contacts of the audience. One who stands with the campaign too is counted twice.
func (v *validation) members(ctx context.Context) error {
	a, err := audienceOf(v.r)
	if err != nil {
		return err
	}
	var after contacts.ID
	for done := false; !done; {
		err := v.s.db.View(ctx, func(tx kv.Tx) error {
			page, next, end, err := v.s.contacts.PageTx(tx, a, after, audiencePage)
			if err != nil {
				return err
			}
			after, done = next, end
			batch := make([]recipient, 0, len(page))
			for i := range page {
				rec, err := recipientOf(&page[i])
				if err != nil {
					return err
				}
				batch = append(batch, rec)
			}
			return v.look(tx, batch)
		})
		if err != nil {
			return fmt.Errorf("validate campaign: %w", err)
		}
	}
	return nil
}

// look sorts recipients by what would become of them.
func (v *validation) look(tx kv.Tx, batch []recipient) error {
	n := &v.out.Recipients
	to := make([]mail.Path, len(batch))
	for i := range batch {
		to[i] = batch[i].to
	}
	entries, err := v.s.suppression.CheckManyTx(tx, v.r.Account, to, true)
	if err != nil {
		return err
	}
	erased := make([]bool, len(to))
	if v.s.contacts != nil {
		if erased, err = v.s.contacts.ErasedManyTx(tx, v.r.Account, to); err != nil {
			return err
		}
	}
	for i := range batch {
		rec := &batch[i]
		n.Total++
		switch e := entries[i]; {
		case e != nil && e.Reason == suppression.Unsubscribe:
			n.Unsubscribed++
			continue
		case e != nil || erased[i]:
			n.Suppressed++
			continue
		}
		if _, err := parseAddress(rec.to.String()); err != nil {
			n.Invalid++
			continue
		}
		whole := v.lack.see(rec.to, rec.attributes, "")
		if !whole && v.c.skip {
			n.RenderFailed++
			continue
		}
		n.WillSend++
		site := ""
		if v.s.sites != nil {
			site = v.s.sites.SiteOf(rec.to.Domain)
		}
		v.by[providerOfDomain(rec.to.Domain, site)]++
		if (whole || v.c.scope.blank) && v.sample == nil { // else one that lacks something has no message
			kept := *rec
			v.sample = &kept
		}
	}
	return nil
}

// finish adds the checks and the estimate.
func (v *validation) finish() (api.CampaignCheck, error) {
	s, r, c := v.s, v.r, v.c
	domains := map[string]string{"from_verified": c.from.Domain, "return_path_verified": r.Reverse.Domain}
	for _, id := range sortedKeys(domains) {
		v.add(id, s.mayUse(r.Account, domains[id]), "%s is not a sender domain of this account: run relayctl domain add %s", domains[id], domains[id])
	}
	d, _ := s.domains.Domain(c.from.Domain)
	v.add("dkim_aligned", d.Sign == "none" || len(s.keys.Keys(c.from.Domain)) > 0, "%s has no DKIM key: run relayctl domain add %s", c.from.Domain, c.from.Domain)
	v.add("one_click", s.cfg.PublicURL != "", "unsubscribe links need a public address: set admin.public_url in the configuration")
	v.add("audience", v.out.Recipients.WillSend > 0, "nobody would get this campaign")
	v.lacks()
	v.quota24()
	if r.Send.MaxRatePerSecond > 0 {
		seconds := float64(v.out.Recipients.WillSend) / r.Send.MaxRatePerSecond
		v.add("time", seconds <= float64(r.Send.TTLSeconds+r.Send.SpreadSeconds),
			"at %g a second %d recipients take %.0f s, longer than send.ttl_seconds (%d)", r.Send.MaxRatePerSecond, v.out.Recipients.WillSend, seconds, r.Send.TTLSeconds)
	}
	v.estimate()
	v.out.OK = true
	for _, check := range v.out.Checks {
		v.out.OK = v.out.OK && check.OK
	}
	return v.out, nil
}

// lacks tells what recipients lack, one check for each variable.
func (v *validation) lacks() {
	if len(v.lack.missing) == 0 {
		v.add("missing_variables", true, "")
	}
	for _, name := range sortedKeys(v.lack.missing) {
		item := v.lack.missing[name]
		check := v.add("missing_variables", false, "the template needs %q, and %d recipients have none", name, item.count)
		switch check.OK = v.lack.tolerated(); {
		case v.c.skip:
			check.Detail += ": they are left out (on_missing is skip)"
		case v.c.scope.blank:
			check.Detail += ": nothing stands in its place (on_missing is default)"
		}
		check.Count, check.Pointer, check.Sample = item.count, "/data/"+escapePointer(name), item.samples
	}
	for _, reason := range sortedKeys(v.lack.others) {
		item := v.lack.others[reason]
		check := v.add(item.code, false, "%s", reason)
		check.Count, check.Sample = item.count, item.samples
	}
}

// deliverable looks at one message as the mailbox provider does.
func (v *validation) deliverable(msg []byte, at time.Time) {
	v.out.Findings = v.c.findings(msg, at)
	for _, f := range v.out.Findings {
		if f.Level == checklist.Error {
			v.add("deliverable", false, "%s %s: %s (%s)", f.ID, f.Pointer, f.Detail, f.Advice)
			return
		}
	}
	v.add("deliverable", true, "")
}

func (v *validation) estimate() {
	e := &v.out.Estimated
	send := &v.r.Send
	n := v.out.Recipients.WillSend
	e.ByProvider = map[string]int64{}
	for i, count := range v.by {
		if count > 0 {
			e.ByProvider[providerNames[i]] = count
		}
	}
	if v.sample != nil {
		l := v.s.letterTo(v.r, v.sample.to, v.sample.attributes)
		if msg, _, err := v.c.write(nil, &l); err == nil {
			e.Bytes = int64(len(msg)) * n
			v.deliverable(msg, l.at)
		}
	}
	seconds := time.Duration(n) * perTransaction / time.Duration(max(send.MaxConcurrency, 1))
	if send.MaxRatePerSecond > 0 {
		seconds = max(seconds, time.Duration(float64(n)/send.MaxRatePerSecond*float64(time.Second)))
	}
	e.Seconds = int64(max(seconds, time.Duration(send.SpreadSeconds)*time.Second) / time.Second)
}
