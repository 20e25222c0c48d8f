package smtpd

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"

	"relayd/internal/account"
)

// parseCAs reads the certificate authorities whose client certificates a listener trusts.
func parseCAs(text []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, errors.New("no certificate in it")
	}
	return pool, nil
}

// checkCertificate notes whom the client's certificate names. One that is not right is like none: a client may have it
// for somebody else, and can still give a password.
func (s *session) checkCertificate(pool *x509.CertPool) {
	s.certNames = nil
	if pool == nil || len(s.state.PeerCertificates) == 0 {
		return
	}
	chain := s.state.PeerCertificates
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, CurrentTime: s.srv.deps.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		s.srv.log.Info("certificate.refused", "session", s.id, "listener", s.lis.name, "ip", s.ip, "err", err)
		return
	}
	s.certNames = certNames(chain[0])
}

// maxCertNames bounds the names of one certificate that are looked at.
const maxCertNames = 100

// certNames are the names of a certificate that may be a user's: mail addresses and DNS names of its subjectAltName, and
// its common name.
func certNames(c *x509.Certificate) []string {
	names := slices.Clone(c.EmailAddresses)
	for _, name := range c.DNSNames {
		names = append(names, strings.ToLower(name))
	}
	if cn := c.Subject.CommonName; cn != "" {
		names = append(names, cn)
	}
	names = slices.DeleteFunc(names, func(s string) bool { return len(s) > 255 })
	return names[:min(len(names), maxCertNames)]
}

// certCredentials are the credentials that the client's certificate stands for.
func (s *session) certCredentials() (list []account.Credential) {
	people, ok := s.srv.deps.Authenticator.(Credentials)
	if !ok {
		return nil
	}
	for _, name := range s.certNames {
		c, known := people.Credential(name)
		same := func(other account.Credential) bool { return other.Username == c.Username }
		if known && !slices.ContainsFunc(list, same) {
			list = append(list, c)
		}
	}
	return list
}

var errWhichCredential = refuse(535, 7, 8, "The certificate names several credentials: give one as authorization identity")

// external is the EXTERNAL mechanism (RFC 4422 appendix A): the certificate says who the client is.
func (s *session) external(got *login) sasl.Server {
	return sasl.NewExternalServer(func(identity string) error {
		list := s.certCredentials()
		if identity != "" {
			list = slices.DeleteFunc(list, func(c account.Credential) bool { return c.Username != identity })
		}
		switch len(list) {
		case 0: // nobody may act for another, and the credential may be gone since EHLO
			return errAuthFailed
		case 1:
			got.username, got.cred = list[0].Username, &list[0]
			return nil
		}
		return errWhichCredential
	})
}
