package campaign

import (
	"context"
	"fmt"
	"unicode/utf8"

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
	Created  bool // false: it was unsubscribed already
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
	return Unsubscribed{Account: c.account, Address: c.address, Campaign: formatID(c.campaign)}, nil
}

// UnsubscribeURL is the link that a recipient's message carries.
func (s *Service) UnsubscribeURL(account, campaign string, to mail.Path) (string, error) {
	id, err := parseID(campaign)
	if err != nil {
		return "", err
	}
	return unsubscribeBase(s.cfg.PublicURL) + s.tokens.seal(forUnsubscribe, claim{id, account, to.String()}), nil
}

// Unsubscribe keeps the token's address from all broadcasts of its account, durably before it returns (RFC 8058 section
// 3.1: effective without any further step). It may be repeated: Created is false then, and nothing changes.
func (s *Service) Unsubscribe(ctx context.Context, token string) (Unsubscribed, error) {
	u, err := s.ParseToken(token)
	if err != nil {
		return u, err
	}
	err = s.db.Update(ctx, func(tx kv.Tx) (err error) {
		u.Created, err = s.suppression.AddNewTx(tx, suppression.Entry{
			Account: u.Account, Address: u.Address, Scope: suppression.Broadcast, Reason: suppression.Unsubscribe,
			Source: u.Campaign,
		})
		if err != nil || !u.Created {
			return err
		}
		return s.events.Append(tx, event.Event{
			Type: "contact.unsubscribed", At: s.now(), Account: u.Account, Campaign: u.Campaign, To: u.Address, Reason: "unsubscribe",
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

// RotateUnsubscribeKeys makes a new key for the links of mail from now on. Links made with older keys go on working.
func (s *Service) RotateUnsubscribeKeys() error { return s.tokens.Rotate() }
