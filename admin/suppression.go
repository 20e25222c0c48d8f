package admin

import (
	"net/http"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/mail"
	"relayd/internal/suppression"
)

func (s *Server) listSuppressions(r *request, l list) ([]api.Suppression, string, error) {
	entries, next, err := s.deps.Suppression.List(r.Context(), l.account, l.cursor, l.limit)
	return each(entries, suppressionOf), next, err
}

func suppressionOf(e suppression.Entry) api.Suppression {
	return api.Suppression{
		Account: e.Account, Email: e.Address, Scope: e.Scope, Reason: e.Reason, Source: e.Source, Note: e.Note,
		CreatedAt: e.CreatedAt, ExpiresAt: e.ExpiresAt,
	}
}

// entryOf checks what a caller sends. created_at is ours.
func entryOf(account string, in *api.Suppression, source string, now time.Time) (suppression.Entry, mail.Path, error) {
	to, err := mail.ParsePath(strings.TrimSpace(in.Email))
	if err != nil {
		return suppression.Entry{}, to, invalid("/email", api.CodeRecipientInvalid, sentence(err.Error()))
	}
	for pointer, text := range map[string]string{"/note": in.Note, "/source": in.Source} {
		if mail.CleanText(text, 1000) != text {
			return suppression.Entry{}, to, invalid(pointer, api.CodeInvalidParameter, "One line of at most 1000 bytes.")
		}
	}
	if !in.ExpiresAt.IsZero() && !in.ExpiresAt.After(now) {
		return suppression.Entry{}, to, invalid("/expires_at", api.CodeInvalidParameter, "expires_at is in the past.")
	}
	if in.Source != "" {
		source = in.Source
	}
	return suppression.Entry{
		Account: account, Address: to.String(), Scope: in.Scope, Reason: in.Reason, Source: source, Note: in.Note,
		ExpiresAt: in.ExpiresAt,
	}, to, nil
}

func (s *Server) addSuppression(r *request, in *api.Suppression) (api.SuppressionAdded, error) {
	var out api.SuppressionAdded
	account, err := r.caller.account(in.Account)
	if err != nil {
		return out, err
	}
	e, to, err := entryOf(account, in, "api", s.now())
	if err != nil {
		return out, err
	}
	if e.Scope == "" {
		e.Scope = suppression.Global
	}
	if out.Created, err = s.deps.Suppression.Add(r.Context(), e); err != nil {
		return out, err
	}
	if !out.Created {
		r.status = http.StatusOK
	} else if e.Reason == suppression.Complaint {
		if err := s.deps.Campaigns.Complained(r.Context(), account, e.Source); err != nil {
			return out, err
		}
	}
	entries, err := s.deps.Suppression.Get(r.Context(), account, to)
	if err != nil {
		return out, err
	}
	for _, found := range entries {
		if found.Scope == e.Scope {
			out.Suppression = suppressionOf(found)
		}
	}
	return out, nil
}

func (s *Server) checkSuppression(r *request) (api.SuppressionCheck, error) {
	var out api.SuppressionCheck
	account, to, err := suppressionPath(r)
	if err != nil {
		return out, err
	}
	entries, err := s.deps.Suppression.Get(r.Context(), account, to)
	if err != nil {
		return out, err
	}
	out = api.SuppressionCheck{
		Email: to.String(), Entries: each(entries, suppressionOf), Effective: api.SuppressionEffective{Transactional: "allowed", Broadcast: "allowed"},
	}
	for _, e := range entries {
		if !e.ExpiresAt.IsZero() && !e.ExpiresAt.After(s.now()) {
			continue
		}
		out.Effective.Broadcast = "blocked"
		if e.Scope == suppression.Global {
			out.Effective.Transactional = "blocked"
		}
	}
	return out, nil
}

func suppressionPath(r *request) (string, mail.Path, error) {
	account, err := r.account()
	if err != nil {
		return "", mail.Path{}, err
	}
	to, err := mail.ParsePath(r.PathValue("email"))
	if err != nil {
		return "", to, badParameter("email", sentence(err.Error()))
	}
	return account, to, nil
}

func (s *Server) removeSuppression(r *request) (api.SuppressionRemoved, error) {
	var out api.SuppressionRemoved
	account, to, err := suppressionPath(r)
	if err != nil {
		return out, err
	}
	scope := r.URL.Query().Get("scope")
	if scope != "" && scope != suppression.Global && scope != suppression.Broadcast {
		return out, badParameter("scope", "scope must be global or broadcast.")
	}
	n, err := s.deps.Suppression.Remove(r.Context(), account, to, scope)
	if err != nil {
		return out, err
	}
	if n == 0 {
		return out, notFound("suppression")
	}
	return api.SuppressionRemoved{Email: to.String(), Removed: n}, nil
}
