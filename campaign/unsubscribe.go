package campaign

import (
	"context"
	"fmt"
	"unicode/utf8"

	contacts "relayd/internal/contact"
	"relayd/internal/event"
	"relayd/internal/kv"
	"relayd/internal/mail"
	"relayd/internal/suppression"
)

// Unsubscribed says whom a token names.
type Unsubscribed struct {
	Account  string
	Address  string // whole: pages show only Masked
	Campaign string
	List     string // ID of the list that the token takes the address off; "": all broadcasts of the account
	Created  bool   // false: it was unsubscribed already
}

// Masked is the address as a page may show it: a***@example.com. A mail that is forwarded must not tell whose it was.
func (u Unsubscribed) Masked() string {
	p, err := mail.ParsePath(u.Address)
	if err != nil {
		return "***"
	}
	_, size := utf8.DecodeRuneInString(p.Local)
	return p.Local[:size] + "***@" + p.Domain
}

// ParseToken checks a token and returns whom it names, without touching the store. Every defect is ErrBadToken.
func (s *Service) ParseToken(token string) (Unsubscribed, error) {
	c, err := s.tokens.open(forUnsubscribe, token)
	if err != nil {
		return Unsubscribed{}, err
	}
	u := Unsubscribed{Account: c.account, Address: c.address, Campaign: formatID(c.campaign)}
	if c.list != (contacts.ListID{}) {
		u.List = c.list.String()
	}
	return u, nil
}

// UnsubscribeURL is the link that a recipient's message carries.
func (s *Service) UnsubscribeURL(account, campaign string, to mail.Path) (string, error) {
	id, err := parseID(campaign)
	if err != nil {
		return "", err
	}
	return unsubscribeBase(s.cfg.PublicURL) + s.tokens.seal(forUnsubscribe, claim{id, contacts.ListID{}, account, to.String()}), nil
}

// Unsubscribe takes the token's address off its campaign's list, or off all broadcasts of its account where the campaign
// had none, durably before it returns (RFC 8058 section 3.1: effective without any further step). Transactional mail is
// not affected. It may be repeated: Created is false then, and nothing changes.
func (s *Service) Unsubscribe(ctx context.Context, token string) (Unsubscribed, error) {
	u, err := s.ParseToken(token)
	if err != nil {
		return u, err
	}
	err = s.db.Update(ctx, func(tx kv.Tx) (err error) {
		if u.Created, err = s.unsubscribeTx(tx, &u); err != nil || !u.Created {
			return err
		}
		return s.events.Append(tx, event.Event{
			Type: "contact.unsubscribed", At: s.now(), Account: u.Account, Campaign: u.Campaign, To: u.Address, Reason: "unsubscribe",
			Data: listOf(&u),
		})
	})
	if err != nil {
		return u, fmt.Errorf("unsubscribe: %w", err)
	}
	if u.Created {
		s.metrics.unsubscribed.Inc()
	}
	return u, nil
}

func listOf(u *Unsubscribed) map[string]any {
	if u.List == "" {
		return nil
	}
	return map[string]any{"list": u.List}
}

// unsubscribeTx does what the token says. Where the list, or the contact on it, is gone, it suppresses the address: an
// import must not bring it back.
func (s *Service) unsubscribeTx(tx kv.Tx, u *Unsubscribed) (created bool, err error) {
	if u.List != "" && s.contacts != nil {
		to, err := mail.ParsePath(u.Address)
		if err != nil {
			return false, fmt.Errorf("address of a token: %w", err)
		}
		list, err := contacts.ParseListID(u.List)
		if err != nil {
			return false, fmt.Errorf("list of a token: %w", err)
		}
		w, err := s.contacts.WantedTx(tx, list, "", to)
		if err != nil {
			return false, err
		}
		if w.OK || w.Reason != "deleted" && w.Reason != "erased" {
			n, err := s.contacts.UnsubscribeTx(tx, list, "", []mail.Path{to}, "campaign:"+u.Campaign)
			return n > 0, err
		}
	}
	return s.suppression.AddNewTx(tx, suppression.Entry{
		Account: u.Account, Address: u.Address, Scope: suppression.Broadcast, Reason: suppression.Unsubscribe, Source: u.Campaign,
	})
}

// RotateUnsubscribeKeys makes a new key for the links of mail from now on. Links made with older keys go on working.
func (s *Service) RotateUnsubscribeKeys() error { return s.tokens.Rotate() }
