package admin

import (
	"net/http"

	"relayd/internal/account"
	"relayd/internal/api"
)

func keyOf(k account.Key) api.Key {
	return api.Key{ID: k.ID, Account: k.Account, Name: k.Name, Scopes: k.Scopes, CreatedAt: k.CreatedAt}
}

func (s *Server) listKeys(r *request, l list) ([]api.Key, string, error) {
	all, err := s.deps.Accounts.Keys(r.Context(), l.account)
	found, next := cut(l, all, func(x account.Key) string { return x.ID })
	return each(found, keyOf), next, err
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
