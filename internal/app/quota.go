package app

import (
	"relayd/internal/account"
	"relayd/internal/intake"
)

// quota is intake.Quota.
type quota struct{ *account.Quota }

// ReserveDay is campaign.Quota.
func (q quota) ReserveDay(account string, n int) (intake.Reservation, error) {
	r, err := q.Quota.ReserveDay(account, n)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Reserve takes n recipients.
func (q quota) Reserve(account, credential string, n int) (intake.Reservation, error) {
	r, err := q.Quota.Reserve(account, credential, n)
	if err != nil {
		return nil, err
	}
	return r, nil
}
