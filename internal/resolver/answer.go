package resolver

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// resolve asks the servers and follows aliases (RFC 1034 section 3.6.2).
func (r *Resolver) resolve(ctx context.Context, q question) *answer {
	ttl := maxTTL
	name := q.name
	for range maxChain {
		m, err := r.exchange(ctx, question{name, q.typ})
		if err != nil {
			return &answer{err: q.error(ErrTemporary, err), expires: r.now().Add(temporaryTTL)}
		}
		f := find(m, name, q.typ)
		ttl = min(ttl, f.ttl)
		switch {
		case f.looped:
			return r.negative(q, m, ttl, ErrTemporary, errors.New("aliases go round in a circle or too far"))
		case len(f.records) > 0:
			return &answer{records: f.records, expires: r.now().Add(max(ttl, minTTL))}
		case m.Rcode == dns.RcodeNameError:
			return r.negative(q, m, ttl, ErrNXDomain, nil)
		case f.name == name || soa(m) != nil:
			return r.negative(q, m, ttl, ErrNoData, nil)
		}
		name = f.name // the server left it to us to follow the alias out of its zone
	}
	return r.negative(q, nil, ttl, ErrTemporary, errors.New("aliases go round in a circle or too far"))
}

// negative keeps an answer without records for as long as the SOA record says (RFC 2308 section 5).
func (r *Resolver) negative(q question, m *dns.Msg, ttl time.Duration, err, detail error) *answer {
	keep := noSOA
	if s := soa(m); s != nil {
		keep = min(seconds(s.Hdr.Ttl), seconds(s.Minttl), maxNegative)
	}
	if errors.Is(err, ErrTemporary) {
		keep = temporaryTTL
	}
	return &answer{err: q.error(err, detail), expires: r.now().Add(max(min(keep, ttl), minTTL))}
}

func soa(m *dns.Msg) *dns.SOA {
	if m == nil {
		return nil
	}
	for _, rr := range m.Ns {
		if s, ok := rr.(*dns.SOA); ok {
			return s
		}
	}
	return nil
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }

type found struct {
	records []record
	name    string // the end of the chain of aliases
	ttl     time.Duration
	looped  bool
}

// find takes the records of name and type from the answer section, at the end of its aliases. Records of other names are
// passed over: nobody asked for them.
func find(m *dns.Msg, name string, typ uint16) found {
	f := found{name: name, ttl: maxTTL}
	for hop := 0; ; hop++ {
		alias := ""
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, f.name) {
				continue
			}
			if h.Rrtype == typ {
				if rec, ok := newRecord(rr); ok {
					f.records = append(f.records, rec)
					f.ttl = min(f.ttl, seconds(h.Ttl))
				}
			}
			if c, ok := rr.(*dns.CNAME); ok && alias == "" {
				alias = strings.ToLower(c.Target)
				f.ttl = min(f.ttl, seconds(h.Ttl))
			}
		}
		if len(f.records) > 0 || alias == "" {
			f.records = bounded(f.records)
			return f
		}
		if hop == maxChain || !validName(alias) {
			f.looped = true
			return f
		}
		f.name = alias
	}
}

// bounded keeps the first records by preference and text: servers give them in another order each time.
func bounded(records []record) []record {
	if len(records) <= maxRecords {
		return records
	}
	slices.SortFunc(records, func(a, b record) int { return cmp.Or(cmp.Compare(a.pref, b.pref), cmp.Compare(a.text, b.text)) })
	return slices.Clone(records[:maxRecords])
}

func newRecord(rr dns.RR) (record, bool) {
	switch rr := rr.(type) {
	case *dns.A:
		return record{text: rr.A.String()}, rr.A != nil
	case *dns.AAAA:
		return record{text: rr.AAAA.String()}, rr.AAAA != nil
	case *dns.MX:
		return record{pref: rr.Preference, text: clean(rr.Mx)}, true
	case *dns.TXT:
		return record{text: unescape(strings.Join(rr.Txt, ""))}, true
	case *dns.PTR:
		return record{text: clean(rr.Ptr)}, true
	}
	return record{}, false
}

// unescape turns the presentation form of a character-string into its bytes (RFC 1035 section 5.1).
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		if i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 10, 8); err == nil {
				b = append(b, byte(n))
				i += 3
				continue
			}
		}
		i++
		b = append(b, s[i])
	}
	return string(b)
}
