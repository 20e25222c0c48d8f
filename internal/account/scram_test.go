package account

import (
	"encoding/base64"
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"relayd/internal/kv"
)

// TestScramVerifierOfRFC7677 checks the keys behind the example of RFC 7677 section 3 (user "user", password "pencil").
func TestScramVerifierOfRFC7677(t *testing.T) {
	t.Parallel()
	salt, err := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	require.NoError(t, err)
	v, err := NewScram("pencil", salt, 4096)
	require.NoError(t, err)
	require.Equal(t, "WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=", base64.StdEncoding.EncodeToString(v.StoredKey))
	require.Equal(t, "wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=", base64.StdEncoding.EncodeToString(v.ServerKey))
}

// TestScramOfUnknownUsersLooksLikeAnyOther, and that of a credential from before there were verifiers as well.
func TestScramOfUnknownUsersLooksLikeAnyOther(t *testing.T) {
	t.Parallel()
	db := openDB(t, filepath.Join(t.TempDir(), "db"))
	s, err := Open(t.Context(), db, nil)
	require.NoError(t, err)
	require.NoError(t, s.AddDomain(t.Context(), Domain{Name: "example.com"}))
	c, password, err := s.CreateCredential(t.Context(), "", nil)
	require.NoError(t, err)
	got, v, err := s.Scram(t.Context(), c.Username)
	require.NoError(t, err)
	require.Equal(t, c, got)
	same, err := NewScram(password, v.Salt, v.Iterations)
	require.NoError(t, err)
	require.Equal(t, same, v)

	_, one, err := s.Scram(t.Context(), "nobody")
	require.ErrorIs(t, err, ErrBadCredentials)
	_, again, _ := s.Scram(t.Context(), "nobody")
	require.Equal(t, one, again)
	require.Len(t, one.Salt, len(v.Salt))
	require.Equal(t, v.Iterations, one.Iterations)
	reopened, err := Open(t.Context(), db, nil) // as after a restart
	require.NoError(t, err)
	_, again, _ = reopened.Scram(t.Context(), "nobody")
	require.Equal(t, one, again, "whoever compares both learns nothing")
	_, other, _ := reopened.Scram(t.Context(), "somebody")
	require.NotEqual(t, one, other)
	fresh, err := Open(t.Context(), openDB(t, filepath.Join(t.TempDir(), "db")), nil)
	require.NoError(t, err)
	_, other, _ = fresh.Scram(t.Context(), "nobody")
	require.NotEqual(t, one, other, "nobody else's relayd has the same")

	record := s.credentials[c.Username]
	record.Scram = nil
	b, err := json.Marshal(record)
	require.NoError(t, err)
	require.NoError(t, db.Update(t.Context(), func(tx kv.Tx) error {
		return tx.Put(credentialTable, []byte(c.Username), append([]byte{1}, b...))
	}))
	require.NoError(t, s.Reload(t.Context()))
	_, err = s.Authenticate(t.Context(), c.Username, password)
	require.NoError(t, err)
	_, _, err = s.Scram(t.Context(), c.Username)
	require.ErrorIs(t, err, ErrBadCredentials)
}
