package admin

import (
	"relayd/internal/account"
	"relayd/internal/api"
)

func credentialOf(c account.Credential) api.Credential {
	if c.Domains == nil {
		c.Domains = []string{}
	}
	return api.Credential{Username: c.Username, Account: c.Account, Domains: c.Domains, CreatedAt: c.CreatedAt}
}

func (s *Server) listCredentials(r *request) (api.Page[api.Credential], error) {
	var none api.Page[api.Credential]
	owner, err := r.caller.filter(r.URL.Query().Get("account"))
	if err != nil {
		return none, err
	}
	l, err := s.list(r)
	if err != nil {
		return none, err
	}
	all, err := s.deps.Accounts.Credentials(r.Context(), owner)
	if err != nil {
		return none, err
	}
	return pageOfAll(s, l, all, func(c account.Credential) string { return c.Username }, credentialOf), nil
}

func (s *Server) createCredential(r *request, in *api.CreateCredential) (api.Credential, error) {
	owner, err := r.caller.account(in.Account)
	if err != nil {
		return api.Credential{}, err
	}
	c, password, err := s.deps.Accounts.CreateCredential(r.Context(), owner, in.Domains)
	if err != nil {
		return api.Credential{}, err
	}
	out := credentialOf(c)
	out.Password = password
	return out, nil
}

func (s *Server) revokeCredential(r *request) error {
	username := r.PathValue("username")
	if c, ok := s.deps.Accounts.Credential(username); !ok || !r.caller.sees(c.Account) {
		return notFound("credential")
	}
	return s.deps.Accounts.RevokeCredential(r.Context(), username)
}
