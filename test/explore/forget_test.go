package explore

import (
	"context"

	"google.golang.org/grpc"

	headwaterv1 "headwater.example/proto/headwater/v1"
)

// forgetful registers a worker's service of sessions that says of each session that it was served last under the first of the epochs
// through which it came.
type forgetful struct{ grpc.ServiceRegistrar }

func (f forgetful) RegisterService(desc *grpc.ServiceDesc, service any) {
	own := *desc
	own.Methods = append([]grpc.MethodDesc(nil), desc.Methods...)
	for i := range own.Methods {
		handle := own.Methods[i].Handler
		own.Methods[i].Handler = func(service any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
			forget := func(m any) any {
				if told, ok := m.(*headwaterv1.ListSessionsResponse); ok {
					for _, s := range told.GetSessions() {
						if len(s.GetLineage()) > 0 {
							s.Served = s.GetLineage()[0]
						}
					}
				}
				if drop, ok := m.(*headwaterv1.DropSessionRequest); ok {
					drop.Served = 0
				}
				return m
			}
			m, err := handle(service, ctx, func(m any) error {
				err := decode(m)
				forget(m)
				return err
			}, intercept)
			return forget(m), err
		}
	}
	f.ServiceRegistrar.RegisterService(&own, service)
}
