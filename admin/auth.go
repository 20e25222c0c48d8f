package admin

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"relayd/internal/account"
	"relayd/internal/api"
)

func withInfo(ctx context.Context, info *requestInfo) context.Context {
	return context.WithValue(ctx, contextKey{}, info)
}

// caller is who makes a request.
type caller struct {
	key  account.Key // of a request over TCP
	full bool        // every scope, in every account: the admin socket, or a key of scope "admin"
}

// name stands in events and in idempotency records.
func (c caller) name() string {
	if c.key.ID == "" {
		return "admin socket"
	}
	return c.key.ID
}

// allows tells whether the caller holds a scope; "" is a scope that everybody holds.
func (c caller) allows(scope string) bool { return c.full || scope == "" || c.key.Allows(scope) }

// own is the account to which the caller is bound, "" for one who may see all.
func (c caller) own() string {
	if c.full {
		return ""
	}
	return c.key.Account
}

// account returns the account that a request is about: the one it names, else the caller's own, else the default one.
// To a caller who is bound to an account every other one does not exist.
func (c caller) account(named string) (string, error) {
	switch {
	case c.full && named == "":
		return account.Default, nil
	case c.full, named == c.key.Account:
		return named, nil
	case named == "":
		return c.key.Account, nil
	}
	return "", notFound("account")
}

// filter is account for lists: "" for a caller who may see all and names none.
func (c caller) filter(named string) (string, error) {
	if c.full {
		return named, nil
	}
	return c.account(named)
}

// account is the caller's account for the one that the query names.
func (r *request) account() (string, error) { return r.caller.account(r.URL.Query().Get("account")) }

// filter is the caller's filter for the account that the query names.
func (r *request) filter() (string, error) { return r.caller.filter(r.URL.Query().Get("account")) }

// own is the account to which the caller is bound.
func (r *request) own() (string, error) { return r.caller.own(), nil }

// sees tells whether an object of that account exists for the caller.
func (c caller) sees(owner string) bool { return c.full || c.key.Account == owner }

// mayGrant tells whether the caller may make a key with these scopes: nobody hands out more than he has.
func (c caller) mayGrant(scopes []string) bool {
	if c.full {
		return true
	}
	return !slices.ContainsFunc(scopes, func(scope string) bool {
		return scope == account.ScopeAdmin || scope == account.ScopeAll && !slices.Contains(c.key.Scopes, account.ScopeAll) ||
			!c.key.Allows(scope)
	})
}

// authenticate finds the caller of a request. A key is never logged and never answered.
func (s *Server) authenticate(r *http.Request) (caller, error) {
	info := infoOf(r)
	if info.trusted {
		return caller{full: true}, nil
	}
	var key account.Key
	err := account.ErrBadCredentials
	if values := r.Header.Values("Authorization"); len(values) == 1 {
		scheme, token, _ := strings.Cut(values[0], " ")
		if strings.EqualFold(scheme, "Bearer") {
			key, err = s.deps.Accounts.CheckKey(r.Context(), strings.TrimSpace(token))
		}
	}
	if err != nil {
		s.metrics.authFailures.Inc()
		return caller{}, &api.Problem{
			Status: http.StatusUnauthorized, Code: api.CodeUnauthorized,
			Detail: "A valid API key is needed: Authorization: Bearer rk_live_…",
		}
	}
	info.account, info.key = key.Account, key.ID
	return caller{key, key.Allows(account.ScopeAdmin)}, nil
}

// authorize refuses a caller without the route's scope.
func (c caller) authorize(scope string) error {
	if c.allows(scope) {
		return nil
	}
	return &api.Problem{
		Status: http.StatusForbidden, Code: api.CodeForbiddenScope,
		Detail: "The API key does not have the scope " + scope + ".",
	}
}
