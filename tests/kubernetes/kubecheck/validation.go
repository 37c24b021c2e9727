package main

import (
	"fmt"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/networking"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	networkingvalidation "k8s.io/kubernetes/pkg/apis/networking/validation"
	"k8s.io/kubernetes/pkg/apis/policy"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	policyvalidation "k8s.io/kubernetes/pkg/apis/policy/validation"
)

// validate returns what the API server's validation finds. A kind that it does not know here is a fault: nothing passes
// unread. Objects of the Prometheus operator have no more than their types.
func validate(object runtime.Object) []string {
	switch object.(type) {
	case *monitoring.PodMonitor, *monitoring.PrometheusRule, *monitoring.ServiceMonitor:
		return nil
	}
	legacyscheme.Scheme.Default(object)
	kind := object.GetObjectKind().GroupVersionKind().GroupKind()
	internal, err := legacyscheme.Scheme.ConvertToVersion(object, kind.WithVersion(runtime.APIVersionInternal).GroupVersion())
	if err != nil {
		return []string{err.Error()}
	}
	if named, err := meta.Accessor(internal); err == nil && named.GetNamespace() == "" && kind.Kind != "Namespace" {
		named.SetNamespace("default") // where kubectl applies it to
	}
	found, known := faults(internal)
	if !known {
		return []string{fmt.Sprintf("kubecheck has no validation of %s: add it", kind)}
	}
	lines := make([]string, 0, len(found))
	for _, fault := range found {
		lines = append(lines, fault.Error())
	}
	return lines
}

func faults(object runtime.Object) (found field.ErrorList, known bool) {
	switch object := object.(type) {
	case *apps.Deployment:
		return appsvalidation.ValidateDeployment(object, podutil.GetValidationOptionsFromPodTemplate(&object.Spec.Template, nil)), true
	case *apps.StatefulSet:
		return appsvalidation.ValidateStatefulSet(object, appsvalidation.StatefulSetValidationOptions{}, podutil.GetValidationOptionsFromPodTemplate(&object.Spec.Template, nil)), true
	case *core.ConfigMap:
		return corevalidation.ValidateConfigMap(object), true
	case *core.Namespace:
		return corevalidation.ValidateNamespace(object), true
	case *core.PersistentVolumeClaim:
		return corevalidation.ValidatePersistentVolumeClaim(object, corevalidation.ValidationOptionsForPersistentVolumeClaim(object, nil)), true
	case *core.Pod:
		return corevalidation.ValidatePodCreate(object, podutil.GetValidationOptionsFromPodSpecAndMeta(&object.Spec, nil, &object.ObjectMeta, nil)), true
	case *core.Secret:
		return corevalidation.ValidateSecret(object), true
	case *core.Service:
		return corevalidation.ValidateServiceCreate(object), true
	case *core.ServiceAccount:
		return corevalidation.ValidateServiceAccount(object), true
	case *networking.NetworkPolicy:
		return networkingvalidation.ValidateNetworkPolicy(object, networkingvalidation.NetworkPolicyValidationOptions{}), true
	case *policy.PodDisruptionBudget:
		return policyvalidation.ValidatePodDisruptionBudget(object, policyvalidation.PodDisruptionBudgetValidationOptions{}), true
	}
	return nil, false
}
