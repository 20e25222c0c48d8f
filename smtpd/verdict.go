package smtpd

import (
	"context"
	"io"
	netmail "net/mail"
	"net/netip"
	"strings"
	"time"

	"github.com/emersion/go-msgauth/authres"

	"relayd/dkim"
	"relayd/internal/mail"
	"relayd/internal/mailauth"
)

// AuthResults tell who sent an inbound message, as far as that can be proved.
type AuthResults struct {
	SPF     mailauth.SPFResult // of the reverse-path; of HELO where that is null
	HELO    mailauth.SPFResult
	DKIM    []dkim.Verification
	DMARC   mailauth.DMARCResult
	From    mail.Path // reverse-path that was judged
	Greeted string    // HELO name that was judged
}

// sender is who handed a message over.
type sender struct {
	ip   netip.Addr
	helo string
	from mail.Path
}

// judgeTime bounds all look-ups for one message; what is not known by then is a temperror.
const judgeTime = 30 * time.Second

// judge evaluates SPF for both identities (RFC 7208 section 2.3 and 2.4), DKIM and DMARC. None of them refuses a
// message: bounces come from hosts of all kinds, and the MAC of the return path is what proves them.
func judge(ctx context.Context, r mailauth.Resolver, s sender, message io.Reader, fields [][]byte) AuthResults {
	ctx, cancel := context.WithTimeout(ctx, judgeTime)
	defer cancel()
	res := AuthResults{From: s.from, Greeted: s.helo}
	res.HELO = mailauth.CheckSPF(ctx, r, s.ip, s.helo, "")
	res.SPF = res.HELO
	if !s.from.IsNull() {
		res.SPF = mailauth.CheckSPF(ctx, r, s.ip, s.helo, s.from.String())
	}
	var err error
	if res.DKIM, err = dkim.Verify(ctx, message, r); err != nil {
		res.DKIM = []dkim.Verification{{Result: dkim.ResultPermError, Error: mail.CleanText(err.Error(), 300)}}
	}
	var ids mailauth.Identifiers
	if res.SPF.Result == mailauth.Pass {
		ids.SPF = res.SPF.Domain
	}
	for _, v := range res.DKIM {
		if v.Result == dkim.ResultPass {
			ids.DKIM = append(ids.DKIM, v.Domain)
		}
	}
	res.DMARC = mailauth.EvaluateDMARC(ctx, r, authorDomain(fields), ids)
	return res
}

// authorDomain is the domain of the one address in the one From field, "" where there is none (RFC 9989 section 5.3.1).
func authorDomain(fields [][]byte) string {
	values := fieldValues(fields, "From")
	if len(values) != 1 {
		return ""
	}
	list, err := netmail.ParseAddressList(values[0])
	if err != nil || len(list) != 1 {
		return ""
	}
	return list[0].Address[strings.LastIndexByte(list[0].Address, '@')+1:]
}

// format writes the value of Authentication-Results (RFC 8601).
func (a *AuthResults) format(host string) string {
	spf := func(r mailauth.SPFResult, from, helo string) authres.Result {
		return &authres.SPFResult{Value: authres.ResultValue(r.Result), From: from, Helo: helo}
	}
	var all []authres.Result
	if !a.From.IsNull() {
		all = append(all, spf(a.SPF, pvalue(a.From.String()), ""))
	}
	all = append(all, spf(a.HELO, "", pvalue(a.Greeted)))
	for _, v := range a.DKIM {
		all = append(all, &authres.DKIMResult{
			Value: authres.ResultValue(v.Result), Reason: pvalue(v.Error), Domain: pvalue(v.Domain),
		})
	}
	if len(a.DKIM) == 0 {
		all = append(all, &authres.DKIMResult{Value: authres.ResultNone})
	}
	if a.DMARC.From != "" {
		all = append(all, &authres.DMARCResult{Value: authres.ResultValue(a.DMARC.Result), From: pvalue(a.DMARC.From)})
	}
	return authres.Format(host, all)
}

// pvalue keeps what a value can carry without breaking out of its field.
func pvalue(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' || r == ';' || r == '(' || r == ')' {
			return '?'
		}
		return r
	}, mail.CleanText(s, 255))
}
