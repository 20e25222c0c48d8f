package campaign

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strings"

	"relayd/internal/api"
	"relayd/internal/mail"
)

// templateKey names a compiled template in the cache. A draft that changes has another revision.
type templateKey struct {
	account, name     string
	version, revision int
}

// markOfTemplate stands in boundaries and content IDs of what a stored template makes.
func markOfTemplate(account, name string) string {
	sum := sha256.Sum256([]byte(account + "\x00" + name))
	return hex.EncodeToString(sum[:10])
}

// compileStored compiles a stored template. from is whose message it makes, nil for nobody's in particular.
func (s *Service) compileStored(account, name, kind string, t *api.CampaignTemplate, data map[string]any, from *api.Mailbox) (*composition, error) {
	bad := &Invalid{}
	c := &composition{
		mark: markOfTemplate(account, name), single: kind == kindTransactional, account: account, name: name, host: s.cfg.Hostname,
		unsub: unsubscribeBase(s.publicURL()), mailbox: s.cfg.UnsubscribeMailbox,
	}
	if from == nil {
		from = &api.Mailbox{Email: "preview@" + previewDomain(s.cfg.Hostname)}
	}
	req := &api.CreateCampaign{Name: name, From: *from, Template: *t}
	c.addresses(req, bad)
	c.data(data, t, bad)
	set, err := c.content(t, bad)
	if err != nil {
		return nil, err
	}
	if c.single {
		if c.head, err = appendFrom(nil, from.Name, c.from); err != nil {
			return nil, err
		}
		c.assembleParts(set)
	} else if err := c.assemble(req, set); err != nil {
		return nil, err
	}
	c.lint(t, set)
	c.warnVariables(t)
	return c, nil
}

func appendFrom(b []byte, name string, from mail.Path) ([]byte, error) {
	text, err := mail.FormatAddress(name, from)
	if err != nil {
		return nil, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/from/name", Code: "header_line_break", Detail: err.Error()}}}
	}
	return mail.AppendRawField(b, "From", text)
}

// previewDomain is a domain for addresses of previews.
func previewDomain(host string) string {
	if strings.Contains(host, ".") {
		return host
	}
	return "relay.example"
}

// publicURL is where links of previews lead while none is configured.
func (s *Service) publicURL() string {
	if s.cfg.PublicURL == "" {
		return "https://" + previewDomain(s.cfg.Hostname)
	}
	return s.cfg.PublicURL
}

// ErrNotPublished tells that a template has no version that may be sent.
var ErrNotPublished = errors.New("no published version")

// resolve returns the content of a published version; 0 is the one that is published last.
func (s *Service) resolve(ctx context.Context, account string, ref api.TemplateRef, kind, pointer string) (t *api.CampaignTemplate, key templateKey, err error) {
	refuse := func(code, format string, args ...any) error {
		bad := &Invalid{}
		bad.add(pointer, code, format, args...)
		return bad.orNil()
	}
	version := ref.Version
	r, e, content, err := s.edition(ctx, account, ref.Name, 0)
	if err == nil {
		if version == 0 {
			version = r.Published
		}
		if version == 0 {
			return nil, key, refuse(api.CodeConflict, "template %s has no published version: run relayctl template publish %s", ref.Name, ref.Name)
		}
		if e.Version != version {
			_, e, content, err = s.edition(ctx, account, ref.Name, version)
		}
	}
	switch {
	case errors.Is(err, ErrTemplateNotFound):
		return nil, key, refuse(api.CodeNotFound, "there is no template %q of that version", clip(ref.Name, 60))
	case err != nil:
		return nil, key, err
	case r.Kind != kind:
		return nil, key, refuse(api.CodeInvalidParameter, "template %s is of kind %s; here one of kind %s is needed", ref.Name, r.Kind, kind)
	case e.Published.IsZero():
		return nil, key, refuse(api.CodeConflict, "version %d of template %s is a draft: run relayctl template publish %s --version %d", version, ref.Name, ref.Name, version)
	}
	return content.template(), templateKey{account, ref.Name, version, e.Revision}, nil
}

// SingleMessage makes the message of POST /v1/messages from a stored template. head holds From, Reply-To and To; to is
// the first recipient. What the data lacks is an *Invalid that points at it.
func (s *Service) SingleMessage(ctx context.Context, account string, ref api.TemplateRef, data map[string]any, head []byte, from, to mail.Path) ([]byte, error) {
	t, key, err := s.resolve(ctx, account, ref, kindTransactional, "/template")
	if err != nil {
		return nil, err
	}
	c, err := s.templates.get(key, func() (*composition, error) {
		return s.compileStored(account, ref.Name, kindTransactional, t, nil, nil)
	})
	if err != nil {
		return nil, err
	}
	attributes, err := attributesOf(data)
	if err != nil {
		return nil, &Invalid{Code: api.CodeInvalidParameter, Errors: []api.FieldError{{Pointer: "/data", Code: api.CodeInvalidParameter, Detail: err.Error()}}}
	}
	now := s.now()
	l := &letter{to: to, at: now, attributes: attributes, head: head, messageID: mail.NewQueueID(now).String() + "@" + c.host}
	ct := c.contact(l)
	ct.system.sender = from.String()
	if err := c.lacking(ct, ref.Name, key.version, ""); err != nil {
		return nil, err
	}
	msg, _, err := c.write(nil, l)
	if err != nil {
		return nil, renderProblem(err)
	}
	return bytes.Clone(msg), nil
}
