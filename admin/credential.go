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

func (s *Server) listCredentials(r *request, l list) ([]api.Credential, string, error) {
	all, err := s.deps.Accounts.Credentials(r.Context(), l.account)
	found, next := cut(l, all, func(x account.Credential) string { return x.Username })
	return each(found, credentialOf), next, err
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
