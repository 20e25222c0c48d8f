package campaign

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"

	"relayd/internal/api"
)

// Bounds of a report's lists.
const (
	maxReasons = 100
	maxDomains = 50
	maxCounted = 20_000 // domains that are told apart while counting
)

// Report tells how a campaign went: progress, and why whom it did not reach was not reached. It reads what is kept of
// every recipient.
func (s *Service) Report(ctx context.Context, account, id string) (api.CampaignReport, error) {
	rep := api.CampaignReport{Attempts: map[string]int64{}, Reasons: []api.ReportReason{}, Domains: []api.ReportDomain{}}
	r, err := s.read(ctx, account, id)
	if err != nil {
		return rep, err
	}
	if rep.Progress, err = s.Progress(ctx, account, id); err != nil {
		return rep, err
	}
	rep.From, rep.Subject, rep.Stream, rep.Tags = r.From, r.Subject, r.Stream, r.Tags
	reasons := map[[3]string]*api.ReportReason{}
	domains := map[string]*api.ReportDomain{}
	err = s.EachRecipient(ctx, account, id, func(one *api.RecipientResult) error {
		name := domainOf(one.Address)
		d := domains[name]
		if d == nil && len(domains) >= maxCounted {
			name = "other"
			d = domains[name]
		}
		if d == nil {
			d = &api.ReportDomain{Domain: name}
			domains[d.Domain] = d
		}
		d.Total++
		switch one.State {
		case "pending", "sending":
			return nil
		case "delivered":
			d.Delivered++
			rep.Attempts[strconv.Itoa(one.Attempts)]++
			return nil
		case "bounced":
			d.Bounced++
		}
		if one.State != "deferred" {
			rep.Attempts[strconv.Itoa(one.Attempts)]++
		}
		key := [3]string{one.State, "", one.Reason}
		sample := ""
		if one.SMTP != nil {
			key[1] = one.SMTP.Enhanced
			sample = strconv.Itoa(one.SMTP.Code) + " " + one.SMTP.Text
		}
		item := reasons[key]
		if item == nil {
			if len(reasons) >= maxReasons {
				return nil
			}
			item = &api.ReportReason{State: key[0], Enhanced: key[1], Reason: key[2], Sample: sample}
			reasons[key] = item
		}
		item.Count++
		return nil
	})
	if err != nil {
		return rep, fmt.Errorf("report campaign: %w", err)
	}
	for _, item := range reasons {
		rep.Reasons = append(rep.Reasons, *item)
	}
	slices.SortFunc(rep.Reasons, func(a, b api.ReportReason) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.State, b.State), cmp.Compare(a.Enhanced, b.Enhanced), cmp.Compare(a.Reason, b.Reason))
	})
	for _, d := range domains {
		rep.Domains = append(rep.Domains, *d)
	}
	slices.SortFunc(rep.Domains, func(a, b api.ReportDomain) int {
		return cmp.Or(cmp.Compare(b.Total, a.Total), cmp.Compare(a.Domain, b.Domain))
	})
	rep.Domains = rep.Domains[:min(len(rep.Domains), maxDomains)]
	return rep, nil
}

func domainOf(address string) string {
	for i := len(address) - 1; i >= 0; i-- {
		if address[i] == '@' {
			return address[i+1:]
		}
	}
	return address
}

// EachRecipient calls fn for what became of each recipient, page by page. Memory stays at one page.
func (s *Service) EachRecipient(ctx context.Context, account, id string, fn func(*api.RecipientResult) error) error {
	r, err := s.read(ctx, account, id)
	if err != nil {
		return err
	}
	for after := uint64(math.MaxUint64); ; {
		page, last, more, err := s.results(ctx, r, after, maxPage)
		if err != nil {
			return err
		}
		for i := range page {
			if err := fn(&page[i].RecipientResult); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		after = last
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}
