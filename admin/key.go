package admin

import (
	"net/http"

	"relayd/internal/account"
	"relayd/internal/api"
)

func keyOf(k account.Key) api.Key {
	return api.Key{ID: k.ID, Account: k.Account, Name: k.Name, Scopes: k.Scopes, CreatedAt: k.CreatedAt}
}

func (s *Server) listKeys(r *request) (api.Page[api.Key], error) {
	var none api.Page[api.Key]
	owner, err := r.caller.filter(r.URL.Query().Get("account"))
	if err != nil {
		return none, err
	}
	l, err := s.list(r)
	if err != nil {
		return none, err
	}
	all, err := s.deps.Accounts.Keys(r.Context(), owner)
	if err != nil {
		return none, err
	}
	return pageOfAll(s, l, all, func(k account.Key) string { return k.ID }, keyOf), nil
}

func (s *Server) createKey(r *request, in *api.CreateKey) (api.Key, error) {
	owner, err := r.caller.account(in.Account)
	if err != nil {
		return api.Key{}, err
	}
	if !r.caller.mayGrant(in.Scopes) {
		return api.Key{}, &api.Problem{
			Status: http.StatusForbidden, Code: api.CodeForbiddenScope, Detail: "A key cannot make a key with more scopes than its own.",
		}
	}
	k, token, err := s.deps.Accounts.CreateKey(r.Context(), owner, in.Name, in.Scopes)
	if err != nil {
		return api.Key{}, err
	}
	out := keyOf(k)
	out.Key = token
	return out, nil
}

func (s *Server) revokeKey(r *request) error {
	id := r.PathValue("id")
	if k, ok := s.deps.Accounts.Key(id); !ok || !r.caller.sees(k.Account) {
		return notFound("key")
	}
	return s.deps.Accounts.RevokeKey(r.Context(), id)
}
