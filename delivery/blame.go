package delivery

import (
	"net/netip"
	"slices"
	"time"

	"relayd/internal/mail"
)

// This file is what becomes of a reply that blames the address that mail leaves from: where the source has others, one of
// them is used towards that site.

// blamedFor is how long a site does not see an address that it has blamed.
const blamedFor = time.Hour

// origin is where a connection leaves from, and for which site.
type origin struct {
	site   string // its key
	source *source
	from   netip.Addr // zero: the system's choice
}

// origin is that of a connection to t which is made now.
func (o *opener) origin(t target) origin {
	to := origin{site: t.site, source: t.source}
	to.from = t.source.bind(t.host, t.addr.Addr(), func(a netip.Addr) bool { return o.isBlamed(t.site, a) })
	return to
}

func (o *opener) isBlamed(site string, from netip.Addr) bool {
	return o.blamed.has(site+" "+from.String(), o.now())
}

// others tells whether there is another address of the same family which the site has not blamed.
func (o *opener) others(of origin) bool {
	return of.source != nil && of.from.IsValid() && slices.ContainsFunc(of.source.family(of.from), func(a netip.Addr) bool {
		return a != of.from && !o.isBlamed(of.site, a)
	})
}

// blames notes an address that a reply blames, and tells whether the next connection leaves from another one. A wish for less
// mail is none that another address may pass by.
func (a *Attempt) blames(of origin, host string, reply mail.Reply, v Verdict) bool {
	if v.Blame != BlameSource || v.Class == classRate || !a.opener.others(of) {
		return false
	}
	if !a.opener.isBlamed(of.site, of.from) {
		a.opener.log.Warn("address.blamed", "ip", of.from.String(), "mx", host, "code", reply.Code, "status", reply.Status.String(),
			"err", reply.Text, "delay", blamedFor.String())
	}
	a.opener.blamed.add(of.site+" "+of.from.String(), a.now().Add(blamedFor))
	return true
}

// leaves closes a session that is not for this message: its host does not keep what it asks for, or it comes from an address
// that the site has blamed since, and there is another one.
func (a *Attempt) leaves() {
	s := a.session
	if s == nil {
		return
	}
	if a.promises(s) != nil || s.origin.from.IsValid() && a.opener.isBlamed(s.origin.site, s.origin.from) && a.opener.others(s.origin) {
		s.Close()
		a.session = nil
	}
}
